plugins {
    alias(libs.plugins.kotlin.jvm)
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    api(libs.coroutines)
    testImplementation(libs.junit)
    testImplementation(libs.kotlin.test.junit)
}
