# What the scripts of this folder compile with, and where it lies: they source this file.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tiny-qmoe
kotlin_version=2.4.20
kotlin=$cache/kotlin-$kotlin_version/lib
android_jar=$cache/android-23.jar
stubs_version=36.20260406
android_stubs=$cache/chaquopy_stubs_android-$stubs_version-py3-none-any.whl
runtime=$kotlin/kotlin-stdlib.jar:$kotlin/kotlinx-coroutines-core-jvm.jar
junit=/usr/share/java/junit4.jar:/usr/share/java/hamcrest-core.jar

# kotlinc ARGUMENTS...: the compiler, which takes a warning for an error.
kotlinc() {
  java -Xmx900m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$kotlin/kotlin-compiler.jar" \
    org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -Werror -no-stdlib -no-reflect -jvm-target 17 "$@"
}
