// The calls of TinyQMoE.kt. Tokens and logits are copied, so that no array of Java's is held while the core computes.
#include <jni.h>

#include <cstdint>
#include <vector>

#include "tinyqmoe/session.h"

namespace {

tinyqmoe_session* session_of(jlong handle) { return reinterpret_cast<tinyqmoe_session*>(handle); }

void refuse(JNIEnv* env, const char* said) {
  const jclass kind = env->FindClass("java/io/IOException");
  if (kind != nullptr) env->ThrowNew(kind, said);
}

}  // namespace

#define TINYQMOE_JNI(type, name) extern "C" JNIEXPORT type JNICALL Java_com_tinyqmoe_TinyQMoE_##name

TINYQMOE_JNI(jlong, open)(JNIEnv* env, jclass, jstring bundle, jint threads, jboolean verify) {
  const char* const folder = env->GetStringUTFChars(bundle, nullptr);
  if (folder == nullptr) return 0;
  tinyqmoe_session_options options = {};
  options.struct_bytes = sizeof options;
  options.bundle = folder;
  options.n_threads = static_cast<uint32_t>(threads);
  options.verify = verify;
  tinyqmoe_session* session = nullptr;
  char said[1000] = "";
  const tinyqmoe_status status = tinyqmoe_session_open(&options, &session, said, sizeof said);
  env->ReleaseStringUTFChars(bundle, folder);
  if (status != TINYQMOE_OK) refuse(env, said);
  return reinterpret_cast<jlong>(session);
}

// The logits after the last token.
TINYQMOE_JNI(jfloatArray, feed)(JNIEnv* env, jclass, jlong handle, jintArray tokens) {
  tinyqmoe_session_state state = {};
  state.struct_bytes = sizeof state;
  tinyqmoe_session_stats(session_of(handle), &state);
  std::vector<int32_t> ids(static_cast<size_t>(env->GetArrayLength(tokens)));
  env->GetIntArrayRegion(tokens, 0, static_cast<jsize>(ids.size()), ids.data());
  std::vector<float> logits(state.vocab);
  const tinyqmoe_status status =
      tinyqmoe_session_feed(session_of(handle), ids.data(), static_cast<uint32_t>(ids.size()), logits.data());
  if (status != TINYQMOE_OK) {
    refuse(env, tinyqmoe_status_name(status));
    return nullptr;
  }
  const jfloatArray out = env->NewFloatArray(static_cast<jsize>(logits.size()));
  if (out != nullptr) env->SetFloatArrayRegion(out, 0, static_cast<jsize>(logits.size()), logits.data());
  return out;
}

TINYQMOE_JNI(void, rewind)(JNIEnv* env, jclass, jlong handle, jint positions) {
  const tinyqmoe_status status = tinyqmoe_session_trim(session_of(handle), static_cast<uint32_t>(positions));
  if (status != TINYQMOE_OK) refuse(env, tinyqmoe_status_name(status));
}

TINYQMOE_JNI(jlong, freeMemory)(JNIEnv*, jclass, jlong bytes) {
  uint64_t freed = 0;
  tinyqmoe_trim(static_cast<uint64_t>(bytes), &freed);
  return static_cast<jlong>(freed);
}

TINYQMOE_JNI(void, close)(JNIEnv*, jclass, jlong handle) { tinyqmoe_session_close(session_of(handle)); }
