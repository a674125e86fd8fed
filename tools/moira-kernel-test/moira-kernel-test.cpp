//===- moira-kernel-test.cpp - Looks at generated kernels -----------------===//
//
// Reads kernel specs in text form (KernelSpec.h), separated by lines `---`, and prints what is
// generated from them at one stage. A tool for tests and for developers of lib/Target/Kernels;
// models go through moe-opt.
//
//===----------------------------------------------------------------------===//
#include "moira/Target/Kernels/KernelImage.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/raw_ostream.h"

using namespace moira::kernels;
namespace cl = llvm::cl;

namespace {
enum class Emit { Key, Linalg, Fused, HostLoops, GpuLoops, Llvm, LlvmOptimized, Image, Ptx };
}

static cl::opt<std::string> inputFile(cl::Positional, cl::init("-"), cl::desc("<specs>"));
static cl::opt<std::string> cpu("cpu", cl::init("x86-64-v3"), cl::desc("CPU level of host code"));
static cl::opt<std::string> chip("chip", cl::init("sm_90"), cl::desc("GPU of PTX"));
static cl::opt<std::string> outputFile("o", cl::init("-"), cl::desc("Output file"));
static cl::opt<Emit>
    emitStage("emit", cl::desc("What to print:"), cl::init(Emit::Fused),
              cl::values(clEnumValN(Emit::Key, "key", "the spec in canonical form"),
                         clEnumValN(Emit::Linalg, "linalg", "linalg on tensors"),
                         clEnumValN(Emit::Fused, "fused", "linalg after fusion"),
                         clEnumValN(Emit::HostLoops, "host-loops", "row loops for the host"),
                         clEnumValN(Emit::GpuLoops, "gpu-loops", "row loops for a GPU"),
                         clEnumValN(Emit::Llvm, "llvm", "LLVM IR for the host"),
                         clEnumValN(Emit::LlvmOptimized, "llvm-optimized", "the same after O3"),
                         clEnumValN(Emit::Image, "image", "the ELF image"),
                         clEnumValN(Emit::Ptx, "ptx", "PTX")));

static llvm::Expected<std::vector<KernelSpec>> readSpecs(llvm::StringRef text) {
  std::vector<KernelSpec> specs;
  llvm::StringMap<unsigned> uses;
  while (!text.empty()) {
    auto [head, tail] = text.split("\n---\n");
    text = tail;
    llvm::Expected<KernelSpec> spec = parseKernelSpec(head);
    if (!spec)
      return spec.takeError();
    if (unsigned n = ++uses[spec->name]; n > 1)
      spec->name += "_" + std::to_string(n);
    specs.push_back(std::move(*spec));
  }
  return specs;
}

static llvm::Expected<std::string> generate(llvm::ArrayRef<KernelSpec> specs) {
  HostImageOptions options{cpu};
  switch (emitStage) {
  case Emit::Key: {
    std::string text;
    for (const KernelSpec &spec : specs) {
      auto values = spec.infer();
      if (!values)
        return values.takeError();
      text += spec.name + ": " + spec.key() + "\n";
    }
    return text;
  }
  case Emit::Linalg:
    return dumpKernels(specs, KernelStage::Linalg, options);
  case Emit::Fused:
    return dumpKernels(specs, KernelStage::Fused, options);
  case Emit::HostLoops:
    return dumpKernels(specs, KernelStage::HostLoops, options);
  case Emit::GpuLoops:
    return dumpKernels(specs, KernelStage::GpuLoops, options);
  case Emit::Llvm:
    return dumpKernels(specs, KernelStage::HostLlvm, options);
  case Emit::LlvmOptimized:
    return dumpKernels(specs, KernelStage::HostOptimized, options);
  case Emit::Image: {
    auto image = buildHostImage(specs, options);
    if (!image)
      return image.takeError();
    return std::move(image->bytes);
  }
  case Emit::Ptx:
    return buildPtx(specs, chip);
  }
  llvm_unreachable("all stages handled");
}

int main(int argc, char **argv) {
  cl::ParseCommandLineOptions(argc, argv, "Prints generated kernels\n");
  auto input = llvm::MemoryBuffer::getFileOrSTDIN(inputFile);
  if (!input) {
    llvm::errs() << inputFile << ": " << input.getError().message() << "\n";
    return 2;
  }
  auto specs = readSpecs((*input)->getBuffer());
  auto text = specs ? generate(*specs) : llvm::Expected<std::string>(specs.takeError());
  if (!text) {
    llvm::errs() << "error: " << llvm::toString(text.takeError()) << "\n";
    return 2;
  }
  std::error_code error;
  llvm::raw_fd_ostream os(outputFile, error);
  if (error) {
    llvm::errs() << outputFile << ": " << error.message() << "\n";
    return 5;
  }
  os << *text;
  return 0;
}
