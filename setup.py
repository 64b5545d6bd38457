"""The C++ core, sessions and the encoder, one library with a C ABI that is opened with ctypes.

All else is in pyproject.toml. The folders are the list of sources, here, in CMakeLists.txt and in
runtime_ref/executorch/kernels.py; `command_line` is here alone.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = "exporter/native"
FOLDERS = ("core", "llm", "encoder", "command_line")
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
THREADS = ["-pthread"]  # of a session

if sys.platform == "darwin":  # as executorch's wheels: they need it
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "14.0")


class InParallel(build_ext):
    """Compiles as many files at a time as there are processors: setuptools does so with extensions
    only, of which this is one."""

    def build_extension(self, ext):
        one = self.compiler.compile

        def compile_all(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = pool.map(lambda source: one([source], **options), sources)
                return [obj for objects in compiled for obj in objects]

        self.compiler.compile = compile_all
        super().build_extension(ext)


setup(
    cmdclass={"build_ext": InParallel},
    ext_modules=[
        Extension(
            "exporter.native._tinyqmoe",
            sources=sorted(f for name in FOLDERS for f in glob(f"{NATIVE}/{name}/*.cc")),
            depends=sorted(glob(f"{NATIVE}/*/*.h") + glob(f"{NATIVE}/include/tinyqmoe/*.h")),
            include_dirs=[f"{NATIVE}/include", f"{NATIVE}/core"],
            language="c++",
            extra_compile_args=FLAGS + THREADS,
            extra_link_args=THREADS,
        )
    ],
)
