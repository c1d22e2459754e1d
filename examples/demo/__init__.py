"""From source to a trained model: build, publish, load by commit, train RWKV-7 and RWKV-6, generate.

`python -m examples.demo --help`; `make demo` sets everything up and runs it.
"""
