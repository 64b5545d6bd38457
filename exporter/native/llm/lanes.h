// Sixteen floats, held in as many registers as the instruction set needs.
//
// A file of kernels defines TARGET, the attribute that its functions carry, and LANE_WIDTH, the floats of one register
// (4, 8 or 16; 1 for plain loops), and includes this header. Every operation here is one IEEE operation a lane, so the
// width does not change a bit. The vectors are those of GCC and Clang, which both turn into plain instructions.
#include <cstdint>
#include <cstring>

#include "half.h"
#include "layer_kernels.h"

#if LANE_WIDTH == 1
#define INLINE inline  // sixteen times the text in every place takes a sanitizer minutes to compile
#else
#define INLINE TARGET __attribute__((always_inline)) inline
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC diagnostic ignored "-Wpsabi"  // on passing vectors between functions: these are all inlined
#endif

namespace tinyqmoe {
namespace {

// ---- operations: + - * /, splat, load_lanes, store_lanes, and these two ----
// select_less(a, b, yes, no)   a < b ? yes : no. A NaN is less than nothing.
// times_power(value, t)        value * 2^n, for t = n + 0x1.8p23, whose lowest bits are n.

#if LANE_WIDTH == 1
#include "lanes_plain.h"
#else

typedef float Part __attribute__((vector_size(4 * LANE_WIDTH)));
typedef uint32_t PartBits __attribute__((vector_size(4 * LANE_WIDTH)));

template <typename T>
struct Pair {
  T low, high;
};

#if LANE_WIDTH == 16
using Lanes = Part;
#elif LANE_WIDTH == 8
using Lanes = Pair<Part>;
#else
using Lanes = Pair<Pair<Part>>;
#endif

template <typename T>
INLINE Pair<T> operator+(Pair<T> a, Pair<T> b) { return {a.low + b.low, a.high + b.high}; }
template <typename T>
INLINE Pair<T> operator-(Pair<T> a, Pair<T> b) { return {a.low - b.low, a.high - b.high}; }
template <typename T>
INLINE Pair<T> operator*(Pair<T> a, Pair<T> b) { return {a.low * b.low, a.high * b.high}; }
template <typename T>
INLINE Pair<T> operator/(Pair<T> a, Pair<T> b) { return {a.low / b.low, a.high / b.high}; }

INLINE void fill(float value, Part* out) { *out = value - Part{}; }  // value + 0 would turn -0 into +0
template <typename T>
INLINE void fill(float value, Pair<T>* out) {
  fill(value, &out->low);
  fill(value, &out->high);
}
INLINE Lanes splat(float value) {
  Lanes out;
  fill(value, &out);
  return out;
}

// Part by part: a copy of all sixteen would pass through the stack.
INLINE void load(const float* from, Part* out) { std::memcpy(out, from, sizeof *out); }
template <typename T>
INLINE void load(const float* from, Pair<T>* out) {
  load(from, &out->low);
  load(from + sizeof(T) / sizeof(float), &out->high);
}
INLINE Lanes load_lanes(const float* from) {
  Lanes out;
  load(from, &out);
  return out;
}

INLINE void store_lanes(Part from, float* to) { std::memcpy(to, &from, sizeof from); }
template <typename T>
INLINE void store_lanes(Pair<T> from, float* to) {
  store_lanes(from.low, to);
  store_lanes(from.high, to + sizeof(T) / sizeof(float));
}

INLINE Part select_less(Part a, Part b, Part yes, Part no) { return a < b ? yes : no; }
template <typename T>
INLINE Pair<T> select_less(Pair<T> a, Pair<T> b, Pair<T> yes, Pair<T> no) {
  return {select_less(a.low, b.low, yes.low, no.low), select_less(a.high, b.high, yes.high, no.high)};
}

INLINE Part times_power(Part value, Part t) {
  PartBits bits;
  std::memcpy(&bits, &t, sizeof bits);
  bits = (bits + 127u) << 23;
  Part power;
  std::memcpy(&power, &bits, sizeof power);
  return value * power;
}
template <typename T>
INLINE Pair<T> times_power(Pair<T> value, Pair<T> t) {
  return {times_power(value.low, t.low), times_power(value.high, t.high)};
}

#endif
static_assert(sizeof(Lanes) == kLanes * sizeof(float));

// ---- what follows from them ----

// The first n of sixteen, the others +0.0.
INLINE Lanes load_some(const float* from, uint64_t n) {
  float all[kLanes] = {};
  std::memcpy(all, from, n * sizeof(float));
  return load_lanes(all);
}
INLINE void store_some(Lanes from, uint64_t n, float* to) {
  float all[kLanes];
  store_lanes(from, all);
  std::memcpy(to, all, n * sizeof(float));
}

// The end of sum16 (llm.h).
INLINE float sum_of(Lanes lanes) {
  float p[kLanes];
  store_lanes(lanes, p);
  for (uint32_t width = kLanes / 2; width > 0; width /= 2) {
    for (uint32_t k = 0; k < width; ++k) p[k] += p[k + width];
  }
  return p[0];
}

INLINE float max_of(Lanes lanes) {
  float p[kLanes];
  store_lanes(lanes, p);
  float most = p[0];
  for (uint32_t k = 1; k < kLanes; ++k) most = most < p[k] ? p[k] : most;
  return most;
}

}  // namespace
}  // namespace tinyqmoe
