// No code: a binary target cannot say that an app links the C++ library, so the target of this file does.
