// Sixteen floats in plain loops, for lanes.h where there are no vectors.

struct Lanes {
  float v[kLanes];
};

// f(k) for each lane.
template <typename F>
INLINE Lanes each(const F& f) {
  Lanes out;
  for (uint32_t k = 0; k < kLanes; ++k) out.v[k] = f(k);
  return out;
}

INLINE Lanes operator+(const Lanes& a, const Lanes& b) {
  return each([&](uint32_t k) { return a.v[k] + b.v[k]; });
}
INLINE Lanes operator-(const Lanes& a, const Lanes& b) {
  return each([&](uint32_t k) { return a.v[k] - b.v[k]; });
}
INLINE Lanes operator*(const Lanes& a, const Lanes& b) {
  return each([&](uint32_t k) { return a.v[k] * b.v[k]; });
}
INLINE Lanes operator/(const Lanes& a, const Lanes& b) {
  return each([&](uint32_t k) { return a.v[k] / b.v[k]; });
}

INLINE Lanes splat(float value) {
  return each([&](uint32_t) { return value; });
}
INLINE Lanes load_lanes(const float* from) {
  return each([&](uint32_t k) { return from[k]; });
}
INLINE void store_lanes(const Lanes& from, float* to) { std::memcpy(to, from.v, sizeof from.v); }

INLINE Lanes select_less(const Lanes& a, const Lanes& b, const Lanes& yes, const Lanes& no) {
  return each([&](uint32_t k) { return a.v[k] < b.v[k] ? yes.v[k] : no.v[k]; });
}

INLINE Lanes times_power(const Lanes& value, const Lanes& t) {
  return each([&](uint32_t k) { return value.v[k] * float_of((bits_of(t.v[k]) + 127u) << 23); });
}
