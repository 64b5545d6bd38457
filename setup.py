"""The C++ core and the encoder, one library with a C ABI that is opened with ctypes.

All else is in pyproject.toml. The folders are the list of sources, here, in CMakeLists.txt and in
runtime_ref/kernels.py.
"""

from glob import glob

from setuptools import Extension, setup

NATIVE = "exporter/native"
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]

setup(
    ext_modules=[
        Extension(
            "exporter.native._tinyqmoe",
            sources=sorted(glob(f"{NATIVE}/core/*.cc") + glob(f"{NATIVE}/encoder/*.cc")),
            depends=sorted(glob(f"{NATIVE}/core/*.h") + glob(f"{NATIVE}/include/tinyqmoe/*.h")),
            include_dirs=[f"{NATIVE}/include", f"{NATIVE}/core"],
            language="c++",
            extra_compile_args=FLAGS,
        )
    ]
)
