"""What the project is made of, and what it needs; constraints.txt pins the versions."""

from setuptools import find_packages, setup

PACKAGES = ["llama", "sampling", "judge", "dpo", "loop", "seed", "controls", "bench"]

setup(
    name="self-rewarding",
    version="0.1.0",
    description="Self-Rewarding Language Models, from scratch",
    license="MIT",
    python_requires=">=3.11",
    package_dir={
        "": "."
    },  # an editable install is then one line on the path: new files just appear
    packages=find_packages(include=[*PACKAGES, *(f"{name}.*" for name in PACKAGES)]),
    py_modules=["train"],
    package_data={
        "judge": ["prompts/*.txt"],
        "loop": ["presets/*.toml"],
        "seed.world": ["base/*", "data/*"],
    },
    install_requires=["torch>=2.11", "sentencepiece", "safetensors", "numpy", "tqdm"],
    extras_require={
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "rouge-score",
            "scipy",
            "transformers",
            "trl",
        ],
        "lint": ["ruff", "mypy"],
        "peers": ["llama-cpp-python", "gguf"],
    },
)
