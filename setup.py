"""What pyproject.toml cannot say: the one part in C, without which labels are garbled over arrays, slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "protocol._half_gates",
            ["protocol/half_gates.c"],
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-fstack-protector-strong"],
            optional=True,
        )
    ]
)
