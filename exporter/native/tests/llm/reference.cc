#include "reference.h"

#include <algorithm>
#include <cmath>

namespace tests::reference {

float sum16(const Floats& v) {
  float p[16] = {};
  for (size_t i = 0; i < v.size(); ++i) p[i % 16] += v[i];
  for (int k = 0; k < 8; ++k) p[k] += p[k + 8];
  for (int k = 0; k < 4; ++k) p[k] += p[k + 4];
  for (int k = 0; k < 2; ++k) p[k] += p[k + 2];
  return p[0] + p[1];
}

float exponential(float x) {
  if (x < -64.0f) return 0.0f;
  if (x > 88.0f) x = 88.0f;
  const float t = x * 0x1.715476p+0f + 0x1.8p+23f;
  const float n = t - 0x1.8p+23f;
  float r = x - n * 0x1.63p-1f;
  r = r - n * -0x1.bd0106p-13f;
  float p = 1.9875691500e-4f;
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    p = p * r;
    p = p + c;
  }
  const float square = r * r;
  p = p * square;
  p = p + r;
  p = p + 1.0f;
  return std::ldexp(p, static_cast<int>(n));
}

Floats rms_norm(const Floats& x, const Floats& weight, float eps) {
  Floats y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * x[i];
  const float mean = sum16(y) / static_cast<float>(x.size());
  const float r = 1.0f / std::sqrt(mean + eps);
  for (size_t i = 0; i < x.size(); ++i) y[i] = (x[i] * r) * weight[i];
  return y;
}

Floats swiglu(const Floats& gate, const Floats& up) {
  Floats y(gate.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
  return y;
}

Floats attend(const Floats& q, const Rows& rows) {
  const size_t length = rows.keys.size(), head_dim = q.size();
  const bool scaled = !rows.key_scales.empty();
  const float factor = 1.0f / std::sqrt(static_cast<float>(head_dim));
  Floats s(length);
  for (size_t j = 0; j < length; ++j) {
    for (size_t d = 0; d < head_dim; ++d) s[j] += q[d] * rows.keys[j][d];
    if (scaled) s[j] *= rows.key_scales[j];
    s[j] *= factor;
  }
  const float most = *std::max_element(s.begin(), s.end());
  for (float& e : s) e = exponential(e - most);
  const float z = sum16(s);
  for (size_t j = 0; scaled && j < length; ++j) s[j] *= rows.value_scales[j];
  Floats y(head_dim);
  for (size_t d = 0; d < head_dim; ++d) {
    for (size_t begin = 0; begin < length; begin += 128) {
      float block = 0.0f;
      for (size_t j = begin; j < std::min(length, begin + 128); ++j) block += s[j] * rows.values[j][d];
      y[d] += block;
    }
    y[d] /= z;
  }
  return y;
}

}  // namespace tests::reference
