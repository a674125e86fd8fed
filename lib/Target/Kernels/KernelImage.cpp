//===- KernelImage.cpp - From specs to images -----------------------------===//
//
// The two roads of KernelImage.h, stage by stage.
//
//===----------------------------------------------------------------------===//
#include "moira/Target/Kernels/KernelImage.h"
#include "Codegen.h"
#include "Lowering.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/GPU/GPUToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/NVVM/NVVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/raw_ostream.h"
#include "llvm/TargetParser/Host.h"

using namespace mlir;
using namespace moira::kernels;
using llvm::Expected;

namespace {

/// What a host CPU level means: f32 lanes of its vectors and what a machine must have.
struct CpuLevel {
  StringRef name;
  unsigned width;
  StringRef features;
};
constexpr CpuLevel kLevels[] = {
    {"x86-64-v4", 16,
     "avx,avx2,avx512bw,avx512cd,avx512dq,avx512f,avx512vl,bmi,bmi2,f16c,fma,lzcnt,movbe"},
    {"x86-64-v3", 8, "avx,avx2,bmi,bmi2,f16c,fma,lzcnt,movbe"},
};
constexpr StringRef kHostTriple = "x86_64-unknown-linux-gnu";

Expected<const CpuLevel *> findLevel(StringRef name) {
  if (name == "native") {
    llvm::StringMap<bool> have = llvm::sys::getHostCPUFeatures();
    auto has = [&](StringRef feature) { return have.lookup(feature); };
    for (const CpuLevel &level : kLevels)
      if (llvm::all_of(llvm::split(level.features, ','), has))
        return &level;
    return llvm::createStringError("this machine is older than x86-64-v3");
  }
  for (const CpuLevel &level : kLevels)
    if (level.name == name)
      return &level;
  return llvm::createStringError("unknown host cpu '%s'; known: x86-64-v3, x86-64-v4, native",
                                 name.str().c_str());
}

/// A context of our own, whose diagnostics become the text of the error.
class Session {
public:
  Session()
      : context(registry(), MLIRContext::Threading::DISABLED),
        handler(&context, [this](Diagnostic &d) { log += (log.empty() ? "" : "; ") + d.str(); }) {
    loadKernelDialects(context);
  }

  llvm::Error fail(StringRef stage) {
    return llvm::createStringError("kernels cannot be generated (%s): %s", stage.str().c_str(),
                                   log.c_str());
  }

  /// The specs as fused linalg.
  Expected<OwningOpRef<ModuleOp>> build(ArrayRef<KernelSpec> kernels, bool fuse) {
    llvm::StringSet<> names;
    for (const KernelSpec &kernel : kernels) {
      StringRef name = kernel.name;
      if (name.empty() || llvm::isDigit(name[0]) ||
          !llvm::all_of(name, [](char c) { return llvm::isAlnum(c) || c == '_'; }))
        return llvm::createStringError("kernel name '%s' is not a C identifier",
                                       kernel.name.c_str());
      if (!names.insert(name).second)
        return llvm::createStringError("two kernels are named '%s'", kernel.name.c_str());
    }
    Expected<OwningOpRef<ModuleOp>> module = buildLinalg(context, kernels);
    if (module && fuse && failed(fuseLinalg(**module)))
      return fail("fusion");
    return module;
  }

  MLIRContext context;

private:
  static DialectRegistry registry() {
    DialectRegistry registry;
    registerKernelConversions(registry);
    registerBuiltinDialectTranslation(registry);
    registerLLVMDialectTranslation(registry);
    registerGPUDialectTranslation(registry);
    registerNVVMDialectTranslation(registry);
    return registry;
  }

  std::string log;
  ScopedDiagnosticHandler handler;
};

template <typename T> std::string print(T &&ir) {
  std::string text;
  llvm::raw_string_ostream os(text);
  ir.print(os);
  return text;
}

/// LLVM IR of the host kernels, not optimised.
llvm::Error buildHostLlvm(Session &session, ModuleOp module, const CpuLevel &level,
                          llvm::TargetMachine &machine, llvm::LLVMContext &llvmContext,
                          std::unique_ptr<llvm::Module> &result) {
  if (failed(lowerToHostLoops(module, level.width)))
    return session.fail("host loops");
  if (failed(lowerHostToLlvm(module)))
    return session.fail("conversion to LLVM");
  result = translateModuleToLLVMIR(module, llvmContext, "kernels");
  if (!result)
    return session.fail("translation to LLVM IR");
  result->setTargetTriple(machine.getTargetTriple());
  result->setDataLayout(machine.createDataLayout());
  for (llvm::Function &function : *result) {
    if (function.isDeclaration())
      continue;
    function.addFnAttr(llvm::Attribute::NoUnwind);
    function.addFnAttr("target-cpu", level.name);
    function.addFnAttr("prefer-vector-width", std::to_string(level.width * 32));
    function.addFnAttr("no-builtins");
  }
  return llvm::Error::success();
}

} // namespace

Expected<HostImage> moira::kernels::buildHostImage(ArrayRef<KernelSpec> kernels,
                                                   const HostImageOptions &options) {
  Expected<const CpuLevel *> level = findLevel(options.cpu);
  if (!level)
    return level.takeError();
  auto machine = createTargetMachine(kHostTriple, (*level)->name, "");
  if (!machine)
    return machine.takeError();
  Session session;
  auto module = session.build(kernels, /*fuse=*/true);
  if (!module)
    return module.takeError();
  llvm::LLVMContext llvmContext;
  std::unique_ptr<llvm::Module> llvmModule;
  if (llvm::Error e = buildHostLlvm(session, **module, **level, **machine, llvmContext, llvmModule))
    return e;
  optimise(*llvmModule, **machine);
  auto object = emit(*llvmModule, **machine, llvm::CodeGenFileType::ObjectFile);
  if (!object)
    return object.takeError();
  auto image = linkSharedObject(*object);
  if (!image)
    return image.takeError();
  return HostImage{std::move(*image), (kHostTriple + "/" + (*level)->name).str(),
                   (*level)->features.str()};
}

/// Whether the chip ("sm_90") can launch a kernel before the one before it has ended.
static bool startsEarly(StringRef chip) {
  unsigned generation = 0;
  return chip.consume_front("sm_") && !chip.consumeInteger(10, generation) && generation >= 90;
}

Expected<std::string> moira::kernels::buildPtx(ArrayRef<KernelSpec> kernels, StringRef chip) {
  auto machine = createTargetMachine("nvptx64-nvidia-cuda", chip, "+ptx80");
  if (!machine)
    return machine.takeError();
  Session session;
  auto module = session.build(kernels, /*fuse=*/true);
  if (!module)
    return module.takeError();
  if (failed(lowerToGpuLoops(**module, startsEarly(chip))))
    return session.fail("GPU loops");
  if (failed(lowerGpuToNvvm(**module)))
    return session.fail("conversion to NVVM");
  llvm::LLVMContext llvmContext;
  auto gpuModules = (*module)->getOps<gpu::GPUModuleOp>();
  auto llvmModule = translateModuleToLLVMIR(*gpuModules.begin(), llvmContext, "kernels");
  if (!llvmModule)
    return session.fail("translation to LLVM IR");
  for (llvm::Function &function : *llvmModule)
    if (function.isDeclaration() && !function.isIntrinsic())
      return llvm::createStringError("generated PTX would call %s",
                                     function.getName().str().c_str());
  llvmModule->setTargetTriple((*machine)->getTargetTriple());
  llvmModule->setDataLayout((*machine)->createDataLayout());
  optimise(*llvmModule, **machine);
  return emit(*llvmModule, **machine, llvm::CodeGenFileType::AssemblyFile);
}

Expected<std::string> moira::kernels::dumpKernels(ArrayRef<KernelSpec> kernels, KernelStage stage,
                                                  const HostImageOptions &options) {
  Expected<const CpuLevel *> level = findLevel(options.cpu);
  if (!level)
    return level.takeError();
  Session session;
  auto module = session.build(kernels, stage != KernelStage::Linalg);
  if (!module)
    return module.takeError();
  switch (stage) {
  case KernelStage::Linalg:
  case KernelStage::Fused:
    return print(**module);
  case KernelStage::HostLoops:
    if (failed(lowerToHostLoops(**module, (*level)->width)))
      return session.fail("host loops");
    return print(**module);
  case KernelStage::GpuLoops:
    if (failed(lowerToGpuLoops(**module, startsEarly("sm_90"))))
      return session.fail("GPU loops");
    return print(**module);
  case KernelStage::HostLlvm:
  case KernelStage::HostOptimized:
    break;
  }
  auto machine = createTargetMachine(kHostTriple, (*level)->name, "");
  if (!machine)
    return machine.takeError();
  llvm::LLVMContext llvmContext;
  std::unique_ptr<llvm::Module> llvmModule;
  if (llvm::Error e = buildHostLlvm(session, **module, **level, **machine, llvmContext, llvmModule))
    return e;
  if (stage == KernelStage::HostOptimized)
    optimise(*llvmModule, **machine);
  std::string text;
  llvm::raw_string_ostream os(text);
  llvmModule->print(os, nullptr);
  return text;
}
