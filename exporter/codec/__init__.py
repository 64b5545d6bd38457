"""The TQLZ codec: FORMAT.md, its encoder, and two decoders.

One decoder is to read (`reference`) and one to use (`native`).
"""
