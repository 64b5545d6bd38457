// SHA-256 by what processors have for it: four rounds by one or two instructions.
#include "sha256.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define SHA __attribute__((target("sha,ssse3,sse4.1")))

namespace tinyqmoe {
namespace {

SHA inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

// The instructions keep a state as the words a, b, e, f and c, d, g, h, the first of them on top.
struct Halves {
  __m128i abef, cdgh;
};

SHA inline Halves halves_of(const uint32_t state[8]) {
  const __m128i cdab = _mm_shuffle_epi32(load16(state), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(load16(state + 4), 0x1B);
  return {_mm_alignr_epi8(cdab, efgh, 8), _mm_blend_epi16(efgh, cdab, 0xF0)};
}

SHA inline void put_halves(const Halves& halves, uint32_t state[8]) {
  const __m128i feba = _mm_shuffle_epi32(halves.abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(halves.cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

SHA inline void add_block(const uint8_t* block, Halves* halves) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  Halves now = *halves;
  __m128i w[4];  // the last 16 words of the schedule
  for (int i = 0; i < 16; ++i) {
    __m128i& next = w[i % 4];
    if (i < 4) {
      next = _mm_shuffle_epi8(load16(block + 16 * i), big_endian);
    } else {
      const __m128i& before = w[(i + 3) % 4];
      const __m128i seven_before = _mm_alignr_epi8(before, w[(i + 2) % 4], 4);
      next = _mm_add_epi32(_mm_sha256msg1_epu32(next, w[(i + 1) % 4]), seven_before);
      next = _mm_sha256msg2_epu32(next, before);
    }
    const __m128i added = _mm_add_epi32(next, load16(kSha256Rounds + 4 * i));
    now.cdgh = _mm_sha256rnds2_epu32(now.cdgh, now.abef, added);
    now.abef = _mm_sha256rnds2_epu32(now.abef, now.cdgh, _mm_shuffle_epi32(added, 0x0E));
  }
  halves->abef = _mm_add_epi32(halves->abef, now.abef);
  halves->cdgh = _mm_add_epi32(halves->cdgh, now.cdgh);
}

SHA void blocks_by_instructions(const uint8_t* blocks, uint64_t n_blocks, uint32_t state[8]) {
  Halves halves = halves_of(state);
  for (uint64_t i = 0; i < n_blocks; ++i) add_block(blocks + 64 * i, &halves);
  put_halves(halves, state);
}

}  // namespace

Sha256Blocks sha256_instructions() { return has_sha256() ? blocks_by_instructions : nullptr; }

}  // namespace tinyqmoe

#elif defined(__aarch64__)

#include <arm_neon.h>

#if defined(__clang__)
#define SHA __attribute__((target("sha2")))
#else
#define SHA __attribute__((target("arch=armv8-a+crypto")))
#endif

namespace tinyqmoe {
namespace {

SHA inline void add_block(const uint8_t* block, uint32x4_t* abcd, uint32x4_t* efgh) {
  uint32x4_t first = *abcd, second = *efgh;
  uint32x4_t w[4];  // the last 16 words of the schedule
  for (int i = 0; i < 16; ++i) {
    uint32x4_t& next = w[i % 4];
    if (i < 4) {
      next = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(block + 16 * i)));
    } else {
      __asm__("sha256su0 %0.4s, %1.4s" : "+w"(next) : "w"(w[(i + 1) % 4]));
      __asm__("sha256su1 %0.4s, %1.4s, %2.4s" : "+w"(next) : "w"(w[(i + 2) % 4]), "w"(w[(i + 3) % 4]));
    }
    const uint32x4_t added = vaddq_u32(next, vld1q_u32(kSha256Rounds + 4 * i));
    const uint32x4_t before = first;
    __asm__("sha256h %q0, %q1, %2.4s" : "+w"(first) : "w"(second), "w"(added));
    __asm__("sha256h2 %q0, %q1, %2.4s" : "+w"(second) : "w"(before), "w"(added));
  }
  *abcd = vaddq_u32(*abcd, first);
  *efgh = vaddq_u32(*efgh, second);
}

SHA void blocks_by_instructions(const uint8_t* blocks, uint64_t n_blocks, uint32_t state[8]) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (uint64_t i = 0; i < n_blocks; ++i) add_block(blocks + 64 * i, &abcd, &efgh);
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

}  // namespace

Sha256Blocks sha256_instructions() { return has_sha256() ? blocks_by_instructions : nullptr; }

}  // namespace tinyqmoe

#else

tinyqmoe::Sha256Blocks tinyqmoe::sha256_instructions() { return nullptr; }

#endif
