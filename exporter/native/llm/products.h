// The seam between the network and the arithmetic of its products. Only products.cc knows that arithmetic.
#ifndef TINYQMOE_LLM_PRODUCTS_H_
#define TINYQMOE_LLM_PRODUCTS_H_

#include <deque>
#include <memory>
#include <vector>

#include "bundle.h"
#include "loops.h"

namespace tinyqmoe {

// Memory on a multiple of 64 bytes that grows when it must.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  bool reserve(uint64_t n_bytes);  // false: no memory. What it held is lost when it grows.
  void* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  uint64_t size_ = 0;
};

class Products {
 public:
  Products(Loops* loops, tinyqmoe_isa isa) : loops_(loops), isa_(isa) {}

  struct Input {
    const float* x;  // [n_tokens, cols]
    uint32_t n_tokens;
    bool in_int16;  // rounded as tinyqmoe_quantize_x16 does it
  };

  struct Product {
    const Matrix* matrix;
    float* y;  // [n_tokens, rows]
  };

  // Expands what the residency has room for, by all threads; products would do it one after the other.
  tinyqmoe_status prepare(std::vector<const Matrix*> matrices);

  // y = W x for matrices that read the same input.
  tinyqmoe_status multiply(const Input& input, const Product* products, uint32_t n_products);

  // out: float [n_ids, cols].
  tinyqmoe_status embed(const Matrix& matrix, const int64_t* ids, uint32_t n_ids, float* out);

  uint64_t buffer_bytes() const;

 private:
  using Form = std::unique_ptr<tinyqmoe_form, decltype(&tinyqmoe_release)>;

  // Rows [begin, end) of a matrix, in the form in which they are read.
  struct Part {
    const Product* product;
    const tinyqmoe_tensor* tensor;
    uint32_t begin, end;
  };

  tinyqmoe_status quantize(const Input& input, uint32_t cols);
  tinyqmoe_status add_product(const Input& input, const Product& product);
  tinyqmoe_status multiply_parts(const Input& input);
  tinyqmoe_status multiply_rows(const Part& part, const Input& input, uint64_t from, uint64_t to, Buffer* scratch) const;

  Loops* loops_;
  tinyqmoe_isa isa_;
  Buffer quantized_;
  Buffer x_scales_;
  std::deque<Buffer> scratch_;  // one a thread
  std::vector<Form> waiting_;   // of a call, as are parts_: they keep their memory for the next
  std::vector<Part> parts_;
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_PRODUCTS_H_
