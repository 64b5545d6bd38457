// The calls of NativeSession.kt: the C interface of session.h and the residency of tinyqmoe.h.
//
// No array of Java's is held while the core computes: tokens and logits are copied, so the garbage collector never
// waits for a product.
#include <jni.h>

#include <string>
#include <vector>

#include "tinyqmoe/session.h"

namespace {

tinyqmoe_session* session_of(jlong handle) { return reinterpret_cast<tinyqmoe_session*>(handle); }

// The bytes of a text of Java's, as UTF-8 proper: GetStringUTFChars has a form of its own for what is past U+FFFF.
// Empty, with an exception pending, where that fails.
std::string utf8_of(JNIEnv* env, jstring text) {
  const jclass string_class = env->GetObjectClass(text);
  const jmethodID get_bytes = env->GetMethodID(string_class, "getBytes", "(Ljava/lang/String;)[B");
  if (get_bytes == nullptr) return {};
  const jstring charset = env->NewStringUTF("UTF-8");
  if (charset == nullptr) return {};
  const auto bytes = static_cast<jbyteArray>(env->CallObjectMethod(text, get_bytes, charset));
  env->DeleteLocalRef(charset);
  env->DeleteLocalRef(string_class);
  if (env->ExceptionCheck()) return {};
  std::string out(static_cast<size_t>(env->GetArrayLength(bytes)), '\0');
  env->GetByteArrayRegion(bytes, 0, static_cast<jsize>(out.size()), reinterpret_cast<jbyte*>(&out[0]));
  env->DeleteLocalRef(bytes);
  return out;
}

// Throws CoreStatus.error(status, said).
void refuse(JNIEnv* env, tinyqmoe_status status, const char* said) {
  const jclass companion_class = env->FindClass("com/tinyqmoe/core/CoreStatus$Companion");
  if (companion_class == nullptr) return;
  const jclass status_class = env->FindClass("com/tinyqmoe/core/CoreStatus");
  if (status_class == nullptr) return;
  const jfieldID field = env->GetStaticFieldID(status_class, "Companion", "Lcom/tinyqmoe/core/CoreStatus$Companion;");
  const jmethodID error = env->GetMethodID(companion_class, "error", "(ILjava/lang/String;)Lcom/tinyqmoe/core/BundleError;");
  if (field == nullptr || error == nullptr) return;
  const jstring text = env->NewStringUTF(said);
  if (text == nullptr) return;
  const jobject companion = env->GetStaticObjectField(status_class, field);
  const jobject thrown = env->CallObjectMethod(companion, error, static_cast<jint>(status), text);
  if (!env->ExceptionCheck()) env->Throw(static_cast<jthrowable>(thrown));
}

}  // namespace
