# Compiles for Android as the NDK does, by the same compiler and linker, where there is no NDK: the headers and libraries
# of glibc stand in for Android's. What comes out is checked, and does not run on a phone.
#
#   cmake --toolchain android_stand_in.cmake -DANDROID_ABI=arm64-v8a
set(CMAKE_SYSTEM_NAME Linux)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ANDROID_ABI)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
if(ANDROID_ABI STREQUAL "arm64-v8a")
  set(CMAKE_SYSTEM_PROCESSOR aarch64)
  set(libraries /usr/aarch64-linux-gnu/lib)
  file(GLOB headers /usr/aarch64-linux-gnu/include/c++/* /usr/aarch64-linux-gnu/include/c++/*/aarch64-linux-gnu)
  list(APPEND headers /usr/aarch64-linux-gnu/include)
elseif(ANDROID_ABI STREQUAL "x86_64")
  set(CMAKE_SYSTEM_PROCESSOR x86_64)
  set(libraries /usr/lib/x86_64-linux-gnu)
  file(GLOB headers /usr/include/c++/* /usr/include/x86_64-linux-gnu/c++/*)
  list(APPEND headers /usr/include /usr/include/x86_64-linux-gnu)
else()
  message(FATAL_ERROR "ANDROID_ABI is arm64-v8a or x86_64, not '${ANDROID_ABI}'")
endif()
find_program(CMAKE_CXX_COMPILER NAMES clang++-19 REQUIRED)
set(CMAKE_CXX_COMPILER_TARGET ${CMAKE_SYSTEM_PROCESSOR}-linux-android28)
set(CMAKE_CXX_FLAGS_INIT "-nostdlibinc")
foreach(folder ${headers})
  string(APPEND CMAKE_CXX_FLAGS_INIT " -isystem ${folder}")
endforeach()
# Without the static part of a compiler's runtime: lld alone must find everything, as it does in an app.
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-fuse-ld=lld-19 -nostdlib -L${libraries}")
set(CMAKE_CXX_STANDARD_LIBRARIES "-l:libstdc++.so.6 -l:libc.so.6 -l:libm.so.6 -l:libgcc_s.so.1")
