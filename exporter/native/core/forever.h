// A global that is never destroyed. A thread may still multiply while the process ends, and with the C++ library of
// Android and Apple a mutex that was destroyed aborts when it is locked.
#ifndef TINYQMOE_CORE_FOREVER_H_
#define TINYQMOE_CORE_FOREVER_H_

namespace tinyqmoe {

template <typename T>
union Forever {
  T value;

  constexpr Forever() : value{} {}
  ~Forever() {}
};

}  // namespace tinyqmoe
#endif  // TINYQMOE_CORE_FOREVER_H_
