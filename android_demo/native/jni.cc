// The calls of NativeSession.kt: the C interface of session.h and the residency of tinyqmoe.h.
//
// No array of Java's is held while the core computes: tokens and logits are copied, so the garbage collector never
// waits for a product. No local reference outlives a call, and an exception is thrown at its end only.
#include <jni.h>

#include <cstring>
#include <string>
#include <vector>

#include "tinyqmoe/session.h"

namespace {

constexpr uint64_t kErrorBytes = 1000;

tinyqmoe_session* session_of(jlong handle) { return reinterpret_cast<tinyqmoe_session*>(handle); }

// A text of Java's from bytes in UTF-8; JNI's own UTF-8 is another one. Null, with an exception pending, on failure.
jstring text_of(JNIEnv* env, const char* said) {
  const auto n = static_cast<jsize>(std::strlen(said));
  const jclass string_class = env->FindClass("java/lang/String");
  if (string_class == nullptr) return nullptr;
  const jmethodID make = env->GetMethodID(string_class, "<init>", "([BLjava/lang/String;)V");
  const jstring charset = make == nullptr ? nullptr : env->NewStringUTF("UTF-8");
  const jbyteArray bytes = charset == nullptr ? nullptr : env->NewByteArray(n);
  if (bytes == nullptr) return nullptr;
  env->SetByteArrayRegion(bytes, 0, n, reinterpret_cast<const jbyte*>(said));
  return static_cast<jstring>(env->NewObject(string_class, make, bytes, charset));
}

// Throws CoreStatus.error(status, said), or what failed on the way.
void refuse(JNIEnv* env, tinyqmoe_status status, const char* said) {
  const jclass errors = env->FindClass("com/tinyqmoe/engine/NativeErrors");
  if (errors == nullptr) return;
  const jmethodID error =
      env->GetStaticMethodID(errors, "error", "(ILjava/lang/String;)Lcom/tinyqmoe/core/BundleError;");
  const jstring text = error == nullptr ? nullptr : text_of(env, said);
  if (text == nullptr) return;
  const jobject thrown = env->CallStaticObjectMethod(errors, error, static_cast<jint>(status), text);
  if (!env->ExceptionCheck()) env->Throw(static_cast<jthrowable>(thrown));
}

std::string bytes_of(JNIEnv* env, jbyteArray bytes) {
  std::string out(static_cast<size_t>(env->GetArrayLength(bytes)), '\0');
  env->GetByteArrayRegion(bytes, 0, static_cast<jsize>(out.size()), reinterpret_cast<jbyte*>(&out[0]));
  return out;
}

jlongArray longs_of(JNIEnv* env, const std::vector<jlong>& values) {
  const auto n = static_cast<jsize>(values.size());
  const jlongArray out = env->NewLongArray(n);
  if (out != nullptr) env->SetLongArrayRegion(out, 0, n, values.data());
  return out;
}

}  // namespace

#define TINYQMOE_JNI(type, name) extern "C" JNIEXPORT type JNICALL Java_com_tinyqmoe_engine_Native_##name

TINYQMOE_JNI(jlong, open)(JNIEnv* env, jclass, jbyteArray folder, jint context, jint threads, jint batch_tokens,
                          jint engine) {
  const std::string path = bytes_of(env, folder);
  tinyqmoe_session_options options = {};
  options.struct_bytes = sizeof options;
  options.bundle = path.c_str();
  options.context = static_cast<uint32_t>(context);
  options.n_threads = static_cast<uint32_t>(threads);
  options.batch_tokens = static_cast<uint32_t>(batch_tokens);
  options.engine = static_cast<tinyqmoe_engine>(engine);
  tinyqmoe_session* session = nullptr;
  char said[kErrorBytes] = "";
  const tinyqmoe_status status = tinyqmoe_session_open(&options, &session, said, sizeof said);
  if (status != TINYQMOE_OK) refuse(env, status, said);
  return reinterpret_cast<jlong>(session);
}

TINYQMOE_JNI(jint, feed)(JNIEnv* env, jclass, jlong handle, jintArray tokens, jfloatArray logits) {
  const jsize n = env->GetArrayLength(tokens);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  env->GetIntArrayRegion(tokens, 0, n, ids.data());
  const jsize vocab = logits == nullptr ? 0 : env->GetArrayLength(logits);
  std::vector<float> row(static_cast<size_t>(vocab));
  const tinyqmoe_status status = tinyqmoe_session_feed(session_of(handle), ids.data(), static_cast<uint32_t>(n),
                                                       logits == nullptr ? nullptr : row.data());
  if (status == TINYQMOE_OK && logits != nullptr) env->SetFloatArrayRegion(logits, 0, vocab, row.data());
  return static_cast<jint>(status);
}

TINYQMOE_JNI(jint, step)(JNIEnv*, jclass, jlong handle, jint token) {
  int32_t best = 0;
  const tinyqmoe_status status = tinyqmoe_session_step(session_of(handle), token, &best, nullptr);
  return status == TINYQMOE_OK ? best : -static_cast<jint>(status);
}

TINYQMOE_JNI(jint, trim)(JNIEnv*, jclass, jlong handle, jint positions) {
  return static_cast<jint>(tinyqmoe_session_trim(session_of(handle), static_cast<uint32_t>(positions)));
}

TINYQMOE_JNI(jlongArray, state)(JNIEnv* env, jclass, jlong handle) {
  tinyqmoe_session_state s = {};
  s.struct_bytes = sizeof s;
  tinyqmoe_session_stats(session_of(handle), &s);
  return longs_of(env, {s.n_positions, s.context, s.vocab, s.n_threads, static_cast<jlong>(s.mapped_bytes),
                        static_cast<jlong>(s.kv_cache_bytes), static_cast<jlong>(s.buffer_bytes),
                        static_cast<jlong>(s.n_fed), static_cast<jlong>(s.feed_ns)});
}

TINYQMOE_JNI(void, close)(JNIEnv*, jclass, jlong handle) { tinyqmoe_session_close(session_of(handle)); }

TINYQMOE_JNI(void, setBudget)(JNIEnv*, jclass, jlong bytes) { tinyqmoe_set_budget(static_cast<uint64_t>(bytes)); }

TINYQMOE_JNI(jlong, trimResidency)(JNIEnv*, jclass, jlong bytes) {
  uint64_t freed = 0;
  tinyqmoe_trim(static_cast<uint64_t>(bytes), &freed);
  return static_cast<jlong>(freed);
}

TINYQMOE_JNI(jint, setCacheFolder)(JNIEnv* env, jclass, jbyteArray folder) {
  if (folder == nullptr) return static_cast<jint>(tinyqmoe_set_cache_dir(nullptr));
  return static_cast<jint>(tinyqmoe_set_cache_dir(bytes_of(env, folder).c_str()));
}

TINYQMOE_JNI(jlongArray, residency)(JNIEnv* env, jclass) {
  tinyqmoe_residency_stats s = {};
  s.struct_bytes = sizeof s;
  tinyqmoe_stats(&s);
  return longs_of(env, {static_cast<jlong>(s.budget_bytes), static_cast<jlong>(s.dirty_bytes),
                        static_cast<jlong>(s.file_bytes), static_cast<jlong>(s.expansions)});
}
