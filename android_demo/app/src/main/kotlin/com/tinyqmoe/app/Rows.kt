package com.tinyqmoe.app

import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter

/** The rows of a list. [layout] is that of a row, and [show] fills one in. */
class Rows<T>(private val layout: Int, private val show: (view: View, index: Int, row: T) -> Unit) : BaseAdapter() {
    var rows: List<T> = emptyList()
        set(value) {
            if (field == value) return
            field = value
            notifyDataSetChanged()
        }

    override fun getCount(): Int = rows.size

    override fun getItem(position: Int): T = rows[position]

    override fun getItemId(position: Int): Long = position.toLong()

    override fun getView(position: Int, convertView: View?, parent: ViewGroup): View {
        val view = convertView ?: LayoutInflater.from(parent.context).inflate(layout, parent, false)
        show(view, position, rows[position])
        return view
    }
}
