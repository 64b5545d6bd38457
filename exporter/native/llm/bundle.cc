#include "bundle.h"

#include <string_view>
#include <vector>

#include "pages.h"
#include "sha256.h"

namespace tinyqmoe {
namespace {

constexpr uint64_t kNetworkVersion = 3;
constexpr const char* kTokenizer = "tokenizer.json";
constexpr uint64_t kMaxManifestBytes = 16u << 20;
constexpr uint64_t kMaxSize = 1u << 24;  // of any dimension: products of two stay far below 2^64

bool get_size(const Json& object, const char* name, uint32_t* out, std::string* error) {
  const Json* const value = object.find(name);
  uint64_t number = 0;
  if (value != nullptr && value->get(&number) && number > 0 && number <= kMaxSize) {
    *out = static_cast<uint32_t>(number);
    return true;
  }
  *error = std::string("manifest.json: network.") + name + " must be a whole number from 1 to 2^24";
  return false;
}

bool get_text(const Json& object, const char* name, std::string* out) {
  const Json* const value = object.find(name);
  return value != nullptr && value->get(out);
}

bool get_number(const Json& object, const char* name, uint64_t* out) {
  const Json* const value = object.find(name);
  return value != nullptr && value->get(out);
}

// A manifest may name files in its folder only.
bool is_inside(const std::string& path) {
  if (path.empty() || path[0] == '/' || path.find('\\') != std::string::npos || path.find('\0') != std::string::npos) {
    return false;
  }
  const std::string slashed = "/" + path + "/";
  return slashed.find("/../") == std::string::npos;
}

// *manifest reads from *text.
bool read_manifest(const std::string& folder, MappedFile* text, Json* manifest, std::string* error) {
  if (!text->open(folder + "/manifest.json") || text->size() > kMaxManifestBytes) {
    *error = folder + " has no manifest.json that can be read";
    return false;
  }
  std::string problem;
  const std::string_view json(reinterpret_cast<const char*>(text->bytes()), text->size());
  if (Json::parse(json, manifest, &problem)) return true;
  *error = "manifest.json: " + problem;
  return false;
}

// The package whose weights the runner reads: the first that says where its vectors lie.
const Json* find_artifact(const Json& manifest) {
  const Json* const artifacts = manifest.find("artifacts");
  if (artifacts == nullptr) return nullptr;
  for (const Json& artifact : artifacts->items()) {
    const Json* const vectors = artifact.find("vectors");
    if (vectors != nullptr && !vectors->members().empty() && artifact.find("places") != nullptr) return &artifact;
  }
  return nullptr;
}

// The entry of a file among those of the manifest, or null.
const Json* find_file(const Json& manifest, const std::string& wanted) {
  const Json* const files = manifest.find("files");
  for (size_t i = 0; files != nullptr && i < files->items().size(); ++i) {
    std::string path;
    if (get_text(files->items()[i], "path", &path) && path == wanted) return &files->items()[i];
  }
  return nullptr;
}

// Empty, or what is wrong with a file of the bundle.
std::string file_problem(const std::string& folder, const Json& manifest, const std::string& path) {
  const Json* const entry = find_file(manifest, path);
  uint64_t n_bytes = 0;
  std::string expected;
  if (entry == nullptr || !get_number(*entry, "n_bytes", &n_bytes) || !get_text(*entry, "sha256", &expected)) {
    return "has no size and SHA-256 in manifest.json: export again";
  }
  MappedFile file;
  if (!is_inside(path) || !file.open(folder + "/" + path)) return "cannot be read: copy the bundle again";
  char digest[kSha256HexDigits];
  if (file.size() != n_bytes) {
    return "has " + std::to_string(file.size()) + " bytes, expected " + std::to_string(n_bytes) +
           ": copy the bundle again";
  }
  sha256_hex(file.bytes(), file.size(), digest);
  if (expected == std::string(digest, sizeof digest)) return "";
  return "has been changed: its SHA-256 is not that of manifest.json: copy the bundle again";
}

}  // namespace

bool verify_package(const std::string& folder, std::string* error) {
  MappedFile text;
  Json manifest;
  if (!read_manifest(folder, &text, &manifest, error)) return false;
  const Json* const artifact = find_artifact(manifest);
  const Json* const files = artifact == nullptr ? nullptr : artifact->find("files");
  std::vector<std::string> paths;
  for (size_t i = 0; files != nullptr && i < files->items().size(); ++i) {
    if (!files->items()[i].get(&paths.emplace_back())) {
      *error = "manifest.json: a name in files is no text: export again";
      return false;
    }
  }
  if (paths.empty()) {
    *error = "manifest.json: no artifact has places, vectors and files: export again";
    return false;
  }
  if (find_file(manifest, kTokenizer) != nullptr) paths.push_back(kTokenizer);
  for (const std::string& path : paths) {
    const std::string problem = file_problem(folder, manifest, path);
    if (problem.empty()) continue;
    *error = path + " " + problem;
    return false;
  }
  return true;
}

bool find_program(const std::string& folder, ProgramFile* out, std::string* error) {
  MappedFile text;
  Json manifest;
  if (!read_manifest(folder, &text, &manifest, error)) return false;
  const Json* const artifacts = manifest.find("artifacts");
  for (size_t i = 0; artifacts != nullptr && i < artifacts->items().size(); ++i) {
    const Json& artifact = artifacts->items()[i];
    std::string format, path;
    if (!get_text(artifact, "format", &format) || format != "pte") continue;
    if (get_text(artifact, "path", &path) && is_inside(path) &&
        get_number(artifact, "kv_cache_bytes", &out->kv_cache_bytes)) {
      out->path = folder + "/" + path;
      return true;
    }
  }
  *error = "manifest.json: no artifact is a pte with a path and kv_cache_bytes: export with --target android";
  return false;
}

MappedFile::~MappedFile() {
  if (bytes_ != nullptr) unmap(bytes_, size_);
}

bool MappedFile::open(const std::string& path) {
  bytes_ = map_file(path.c_str(), &size_);
  return bytes_ != nullptr;
}

Bundle::~Bundle() {
  for (auto& [name, named] : matrices_) tinyqmoe_close(named.matrix.tensor);
}

tinyqmoe_status Bundle::open(const std::string& folder, std::string* error) {
  folder_ = folder;
  MappedFile text;
  Json manifest;
  if (!read_manifest(folder, &text, &manifest, error)) return TINYQMOE_BAD_ARGUMENT;
  const Json* const artifact = find_artifact(manifest);
  if (artifact == nullptr) {
    *error = "manifest.json: no artifact has both places and vectors: export again";
    return TINYQMOE_BAD_ARGUMENT;
  }
  if (!read_network(manifest, error) || !read_arithmetic(*artifact, error) || !read_vectors(*artifact, error)) {
    return TINYQMOE_BAD_ARGUMENT;
  }
  return read_matrices(manifest, *artifact, error);
}

bool Bundle::read_network(const Json& manifest, std::string* error) {
  const Json* const network = manifest.find("network");
  uint64_t version = 0;
  if (network == nullptr || !get_number(*network, "version", &version) || version != kNetworkVersion) {
    *error = "manifest.json: network must be of version 3: export again, or use the runner of the bundle's release";
    return false;
  }
  const std::pair<const char*, uint32_t*> sizes[] = {
      {"hidden", &network_.hidden},     {"inner", &network_.inner},       {"layers", &network_.layers},
      {"heads", &network_.heads},       {"kv_heads", &network_.kv_heads}, {"head_dim", &network_.head_dim},
      {"vocab", &network_.vocab},       {"context", &network_.context}};
  for (const auto& [name, out] : sizes) {
    if (!get_size(*network, name, out, error)) return false;
  }
  const Json* const eps = network->find("eps");
  double value = 0.0;
  if (eps == nullptr || !eps->get(&value) || !(value > 0.0)) {
    *error = "manifest.json: network.eps must be a positive number of at most 15 digits";
    return false;
  }
  network_.eps = static_cast<float>(value);
  return true;
}

// A session's products have 16-bit activations: it does not compute a package of another arithmetic.
bool Bundle::read_arithmetic(const Json& artifact, std::string* error) {
  std::string activations, kv_type;
  if (!get_text(artifact, "activations", &activations) || activations != "int16") {
    *error = "manifest.json: the package has " + activations + " activations, a session computes int16 only";
    return false;
  }
  const std::pair<const char*, tinyqmoe_kv_type> types[] = {
      {"float16", TINYQMOE_KV_FLOAT16}, {"float32", TINYQMOE_KV_FLOAT32}, {"int8", TINYQMOE_KV_INT8}};
  const bool given = get_text(artifact, "kv_type", &kv_type);
  for (const auto& [name, type] : types) {
    if (given && kv_type == name) network_.kv_type = type;
  }
  if (network_.kv_type == 0) *error = "manifest.json: kv_type must be float16, float32 or int8";
  return network_.kv_type != 0;
}

const MappedFile* Bundle::file(const std::string& name) {
  if (!is_inside(name)) return nullptr;
  MappedFile& file = files_[name];
  return file.bytes() != nullptr || file.open(folder_ + "/" + name) ? &file : nullptr;
}

// Null when they do not lie in a file of the bundle.
const uint8_t* Bundle::bytes_at(const Json& place, const char* offset_name, uint64_t n_bytes) {
  std::string name;
  uint64_t offset = 0;
  if (!get_text(place, "file", &name) || !get_number(place, offset_name, &offset)) return nullptr;
  const MappedFile* const in = file(name);
  if (in == nullptr || offset > in->size() || n_bytes > in->size() - offset) return nullptr;
  return in->bytes() + offset;
}

bool Bundle::read_vectors(const Json& artifact, std::string* error) {
  for (const auto& [name, place] : artifact.find("vectors")->members()) {
    uint64_t n = 0;
    const bool counted = get_number(place, "n", &n) && n > 0 && n <= kMaxSize;
    const uint8_t* const bytes = counted ? bytes_at(place, "offset", n * sizeof(float)) : nullptr;
    if (bytes == nullptr || reinterpret_cast<uintptr_t>(bytes) % alignof(float) != 0) {
      *error = "manifest.json: vectors." + name + " does not lie in a file of the bundle, on a multiple of 4 bytes";
      return false;
    }
    vectors_[name] = {reinterpret_cast<const float*>(bytes), n, false};
  }
  return true;
}

tinyqmoe_status Bundle::read_matrices(const Json& manifest, const Json& artifact, std::string* error) {
  const Json* const tensors = manifest.find("tensors");
  const Json* const places = artifact.find("places");
  for (size_t i = 0; tensors != nullptr && i < tensors->items().size(); ++i) {
    const Json& tensor = tensors->items()[i];
    std::string name;
    const Json* const place = get_text(tensor, "name", &name) ? places->find(name) : nullptr;
    Matrix matrix = {};
    const tinyqmoe_status status = place == nullptr ? TINYQMOE_BAD_ARGUMENT : read_matrix(*place, tensor, &matrix);
    if (status != TINYQMOE_OK) {
      *error = "manifest.json: matrix " + name + ": " + tinyqmoe_status_name(status);
      return status;
    }
    if (!matrices_.emplace(name, NamedMatrix{matrix, false}).second) tinyqmoe_close(matrix.tensor);
  }
  if (matrices_.size() == places->members().size()) return TINYQMOE_OK;
  *error = "manifest.json: tensors and places name different matrices";
  return TINYQMOE_BAD_ARGUMENT;
}

tinyqmoe_status Bundle::read_matrix(const Json& place, const Json& tensor, Matrix* out) {
  std::string form;
  uint64_t n_bytes = 0, group_size = 0;
  if (!get_text(place, "form", &form) || form != "tqlz") return TINYQMOE_BAD_ARGUMENT;
  if (!get_number(place, "n_bytes", &n_bytes) || !get_number(tensor, "group_size", &group_size)) {
    return TINYQMOE_BAD_ARGUMENT;
  }
  const uint8_t* const blob = bytes_at(place, "offset", n_bytes);
  if (blob == nullptr || group_size == 0 || group_size > kMaxSize) return TINYQMOE_BAD_ARGUMENT;
  const tinyqmoe_status status = tinyqmoe_open(blob, n_bytes, 0, &out->tensor);
  if (status != TINYQMOE_OK) return status;

  tinyqmoe_info info;
  tinyqmoe_get_info(out->tensor, &info);
  out->rows = info.rows;
  out->cols = info.cols;
  out->group_size = static_cast<uint32_t>(group_size);
  if (read_scales(place, tensor, out)) return TINYQMOE_OK;
  tinyqmoe_close(out->tensor);
  return TINYQMOE_BAD_ARGUMENT;
}

// Those of a matrix whose other members are known. False when they do not lie in a file of the bundle.
bool Bundle::read_scales(const Json& place, const Json& tensor, Matrix* out) {
  std::string type;
  const bool is_float = get_text(tensor, "scale_type", &type) && type == "float32";
  if (!is_float && type != "ue6m10") return false;
  out->scale_type = is_float ? TINYQMOE_SCALES_FLOAT32 : TINYQMOE_SCALES_UE6M10;
  const uint64_t groups = (uint64_t{out->cols} + out->group_size - 1) / out->group_size;
  const uint64_t item_bytes = is_float ? sizeof(float) : sizeof(uint16_t);
  out->scales = bytes_at(place, "scales_offset", out->rows * groups * item_bytes);
  return out->scales != nullptr && reinterpret_cast<uintptr_t>(out->scales) % item_bytes == 0;
}

uint64_t Bundle::mapped_bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, file] : files_) sum += file.size();
  return sum;
}

const Matrix* Bundle::matrix(const std::string& name, uint32_t rows, uint32_t cols) {
  const auto found = matrices_.find(name);
  if (found == matrices_.end()) return nullptr;
  if (found->second.matrix.rows != rows || found->second.matrix.cols != cols) return nullptr;
  found->second.used = true;
  return &found->second.matrix;
}

const float* Bundle::vector(const std::string& name, uint32_t n) {
  const auto found = vectors_.find(name);
  if (found == vectors_.end() || found->second.n != n) return nullptr;
  found->second.used = true;
  return found->second.values;
}

std::string Bundle::unused() const {
  for (const auto& [name, matrix] : matrices_) {
    if (!matrix.used) return name;
  }
  for (const auto& [name, vector] : vectors_) {
    if (!vector.used) return name;
  }
  return "";
}

}  // namespace tinyqmoe
