// A global that is never destroyed. A thread may still multiply while the process ends, and with the C++ library of
// Android and Apple a mutex that was destroyed aborts when it is locked.
#ifndef TINYQMOE_CORE_NO_DESTROY_H_
#define TINYQMOE_CORE_NO_DESTROY_H_

namespace tinyqmoe {

template <typename T>
union NoDestroy {
  T value;

  constexpr NoDestroy() : value{} {}
  ~NoDestroy() {}
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_NO_DESTROY_H_
