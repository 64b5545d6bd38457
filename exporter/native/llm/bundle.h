// A bundle as the runner sees it: sizes, and mapped weights by name. MANIFEST.md says what is read.
#ifndef TINYQMOE_LLM_BUNDLE_H_
#define TINYQMOE_LLM_BUNDLE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "json.h"
#include "tinyqmoe/llm.h"

namespace tinyqmoe {

struct Network {
  uint32_t hidden, inner, layers, heads, kv_heads, head_dim, vocab, context;
  float eps;
  tinyqmoe_kv_type kv_type;
};

struct Matrix {
  tinyqmoe_tensor* tensor;
  const void* scales;
  tinyqmoe_scale_type scale_type;
  uint32_t group_size;
  uint32_t rows;
  uint32_t cols;
};

// The program of ExecuTorch that a bundle has.
struct ProgramFile {
  std::string path;
  uint64_t kv_cache_bytes;
};

// On failure *error says what is wrong.
bool find_program(const std::string& folder, ProgramFile* out, std::string* error);

// Compares size and SHA-256 of the files of the package that the runner reads, and of the tokenizer that an app reads,
// with the manifest.
bool verify_package(const std::string& folder, std::string* error);

// A file's bytes, mapped for reading.
class MappedFile {
 public:
  MappedFile() = default;
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  bool open(const std::string& path);
  const uint8_t* bytes() const { return bytes_; }
  uint64_t size() const { return size_; }

 private:
  uint8_t* bytes_ = nullptr;
  uint64_t size_ = 0;
};

class Bundle {
 public:
  Bundle() = default;
  ~Bundle();
  Bundle(const Bundle&) = delete;
  Bundle& operator=(const Bundle&) = delete;

  // On failure *error says what is wrong with which name.
  tinyqmoe_status open(const std::string& folder, std::string* error);

  const Network& network() const { return network_; }
  uint64_t mapped_bytes() const;

  // Null when there is none, or one of another shape. What is found counts as used.
  const Matrix* matrix(const std::string& name, uint32_t rows, uint32_t cols);
  const float* vector(const std::string& name, uint32_t n);

  // A name that nobody asked for, so that no part of a model is left out in silence; empty when there is none.
  std::string unused() const;

 private:
  struct Vector {
    const float* values;
    uint64_t n;
    bool used;
  };
  struct NamedMatrix {
    Matrix matrix;
    bool used;
  };

  bool read_network(const Json& manifest, std::string* error);
  bool read_arithmetic(const Json& artifact, std::string* error);
  bool read_vectors(const Json& artifact, std::string* error);
  tinyqmoe_status read_matrices(const Json& manifest, const Json& artifact, std::string* error);
  tinyqmoe_status read_matrix(const Json& place, const Json& tensor, Matrix* out);
  bool read_scales(const Json& place, const Json& tensor, Matrix* out);
  const uint8_t* bytes_at(const Json& place, const char* offset_name, uint64_t n_bytes);
  const MappedFile* file(const std::string& name);

  std::string folder_;
  Network network_ = {};
  std::map<std::string, MappedFile> files_;
  std::map<std::string, NamedMatrix> matrices_;
  std::map<std::string, Vector> vectors_;
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_LLM_BUNDLE_H_
