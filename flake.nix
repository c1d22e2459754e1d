{
  description = "flash-rwkv: RWKV-4, 5, 6 and 7 operators for the kernels Hub";

  # Upstream's builder, pinned by full commit: a moving input would let the same commit of
  # this repository produce other binaries tomorrow.
  inputs = {
    kernel-builder.url = "github:huggingface/kernels/8ac69fc542a4306eade0759ef7c45b4f2ae57df0";
  };

  outputs =
    { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
