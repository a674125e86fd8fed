//===- GpuLoops.cpp - Row loops for a GPU ---------------------------------===//
//
// A block of threads (or, for short rows, each warp of it) handles one point at a time and strides
// over the points by the grid, so that every grid size is right. A kernel's parts are one such loop
// after the other, each begun by other blocks. Threads stride over the point's
// vectors. Sums: lanes of a thread, then a butterfly of shuffles within the warp, then the warps
// through shared memory in warp order; the order depends on the shape only.
//
// An early kernel may be launched while the one before it ends: it waits before it reads anything.
//
//===----------------------------------------------------------------------===//
#include "Lowering.h"
#include "PassBody.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "llvm/Support/MathExtras.h"
#include <map>
#include <memory>

using namespace mlir;
using namespace moira::kernels;

static constexpr unsigned kWarp = 32;
/// Largest block, and largest of a kernel whose threads share nothing and load little: then two
/// such blocks fill a multiprocessor.
static constexpr unsigned kMostThreads = 512, kMostSeparateThreads = 1024;
/// Bytes that such a thread loads at most for a vector of each result.
static constexpr unsigned kLittle = 32;
/// Blocks of kMostThreads that a multiprocessor should hold where threads share nothing and have
/// few vectors each: the compiler of PTX then uses some registers less.
static constexpr int32_t kBlocksTogether = 3;
static constexpr int64_t kFewVectors = 2;
/// Vectors of a pass that a thread loads before anything is stored.
static constexpr int64_t kMostAhead = 4;
/// Values of a vector at least, where alignment allows.
static constexpr unsigned kLeastLanes = 4;
/// Warps of a block whose points are handled by one warp each.
static constexpr unsigned kPackedWarps = 4;
/// Bytes of one vector access.
static constexpr unsigned kAccessBytes = 16;
/// A cache line, and the largest shared operand (a norm's weight) that is fetched ahead.
static constexpr int64_t kLineBytes = 128, kMostFetchedBytes = 1 << 16;

static int64_t product(ArrayRef<int64_t> dims) {
  int64_t result = 1;
  for (int64_t d : dims)
    result *= d;
  return result;
}

namespace {

/// A part of a kernel, and what is known while its loop is built.
struct Part {
  explicit Part(func::FuncOp func, ValueRange arguments)
      : func(func), leadSizes(getLeadSizes(func)), pointers(getOperands(func, arguments)),
        memory(placeOperands(func, pointers)) {}

  func::FuncOp func;
  SmallVector<int64_t> leadSizes;
  SmallVector<Value> pointers;
  KernelMemory memory;
  std::vector<PassBody> passes;
  SmallVector<linalg::GenericOp> ops;
};

class GpuKernel {
public:
  GpuKernel(OpBuilder &b, const KernelFuncs &funcs, bool early)
      : b(b), funcs(funcs), loc(funcs.loc()), early(early) {}

  LogicalResult build() {
    KernelSignature signature = getSignature(funcs);
    // What is read may still be written when an early kernel starts, so nothing may be read as
    // constant.
    if (early)
      for (DictionaryAttr &attributes : signature.attributes)
        if (attributes.contains("llvm.readonly"))
          attributes = b.getDictionaryAttr({});
    kernel = gpu::GPUFuncOp::create(b, loc, funcs.name, b.getFunctionType(signature.types, {}));
    kernel->setAttr(gpu::GPUDialect::getKernelFuncAttrName(), b.getUnitAttr());
    kernel.setAllArgAttrs(ArrayRef<DictionaryAttr>(signature.attributes));
    Block *entry = &kernel.getBody().front();
    Value rows = entry->getArguments().back(); // later workgroup memory stands behind it
    for (func::FuncOp func : funcs.parts) {
      Part &part = *parts.emplace_back(std::make_unique<Part>(func, entry->getArguments()));
      for (auto op : func.getOps<linalg::GenericOp>()) {
        part.passes.emplace_back(op, getPointDims(func), part.memory);
        if (failed(part.passes.back().check()))
          return failure();
        part.ops.push_back(op);
      }
    }
    chooseThreads();
    kernel->setAttr("nvvm.reqntid", b.getDenseI32ArrayAttr({int32_t(blockThreads), 1, 1}));
    if (together)
      kernel->setAttr("nvvm.minctasm", b.getI32IntegerAttr(kBlocksTogether));

    b.setInsertionPointToStart(entry);
    auto end = gpu::ReturnOp::create(b, loc);
    b.setInsertionPoint(end);
    if (early)
      awaitPrevious();
    int64_t before = 0;
    for (auto &part : parts) {
      emitPointLoop(*part, rows, before);
      before += product(part->leadSizes);
    }
    return success();
  }

private:
  void chooseThreads() {
    lanes = 8;
    unsigned smallest = 4;
    auto forEachPass = [&](auto &&fn) {
      for (auto &part : parts)
        llvm::for_each(part->passes, fn);
    };
    forEachPass([&](PassBody &pass) {
      if (!pass.tail().empty())
        smallest = std::min(smallest, pass.smallestElement());
    });
    uint64_t longest = 1;
    forEachPass([&](PassBody &pass) {
      lanes = std::min(lanes, pass.alignedLanes(kAccessBytes / smallest));
      longest = std::max<uint64_t>(longest, product(pass.tail()));
    });
    // A short row by all lanes of a warp.
    while (lanes > kLeastLanes && longest / lanes < kWarp)
      lanes /= 2;
    bool sums = false;
    unsigned bytes = 0;
    forEachPass([&](PassBody &pass) {
      sums |= pass.numSums() > 0;
      bytes += pass.inputBytes(lanes);
    });
    bool separate = !sums && bytes <= kLittle;
    threads = std::clamp<uint64_t>(llvm::PowerOf2Ceil(longest / lanes), kWarp,
                                   separate ? kMostSeparateThreads : kMostThreads);
    together = !sums && threads == kMostThreads && longest <= kFewVectors * threads * lanes;
    packed = threads == kWarp ? kPackedWarps : 1;
    blockThreads = threads * packed;
  }

  Value constant(int64_t v) { return arith::ConstantIndexOp::create(b, loc, v); }
  Value add(Value x, Value y) { return arith::AddIOp::create(b, loc, x, y); }
  Value mul(Value x, int64_t y) { return arith::MulIOp::create(b, loc, x, constant(y)); }
  Value div(Value x, int64_t y) { return arith::DivUIOp::create(b, loc, x, constant(y)); }
  Value rem(Value x, int64_t y) { return arith::RemUIOp::create(b, loc, x, constant(y)); }
  Value addF(Value x, Value y) { return arith::AddFOp::create(b, loc, x, y); }

  /// Indices of row-major position `linear` in a box of these sizes; the first is not reduced.
  void delinearise(Value linear, ArrayRef<int64_t> sizes, SmallVectorImpl<Value> &indices) {
    for (auto [i, size] : llvm::enumerate(sizes)) {
      int64_t below = product(sizes.drop_front(i + 1));
      Value index = below == 1 ? linear : div(linear, below);
      indices.push_back(i == 0 ? index : rem(index, size));
    }
  }

  /// `before`: points of the parts before this one, in a row. The blocks behind theirs have this
  /// one's, so that all parts run at once where there are enough.
  void emitPointLoop(Part &part, Value rowsArgument, int64_t before) {
    OpBuilder::InsertionGuard guard(b);
    Value thread = gpu::ThreadIdOp::create(b, loc, gpu::Dimension::x);
    Value first = gpu::BlockIdOp::create(b, loc, gpu::Dimension::x);
    Value step = gpu::GridDimOp::create(b, loc, gpu::Dimension::x);
    Value rows = arith::IndexCastOp::create(b, loc, b.getIndexType(), rowsArgument);
    if (before > 0) {
      Value taken = div(add(mul(rows, before), constant(packed - 1)), packed);
      Value skipped = arith::RemUIOp::create(b, loc, taken, step);
      first = arith::RemUIOp::create(
          b, loc, add(first, arith::SubIOp::create(b, loc, step, skipped)), step);
    }
    lane = thread;
    if (packed > 1) {
      first = add(mul(first, packed), div(thread, kWarp));
      step = mul(step, packed);
      lane = rem(thread, kWarp);
    }
    auto loop = scf::ForOp::create(b, loc, first, mul(rows, product(part.leadSizes)), step);
    b.setInsertionPointToStart(loop.getBody());
    SmallVector<int64_t> sizes{0};
    llvm::append_range(sizes, part.leadSizes);
    point.clear();
    delinearise(loop.getInductionVar(), sizes, point);
    held.clear();
    for (PassBody &pass : part.passes)
      loadAhead(pass);
    DenseSet<Value> stored; // by earlier passes
    for (auto [op, pass] : llvm::zip(part.ops, part.passes)) {
      if (pass.readsAcrossElements(stored))
        synchronise();
      emitPass(pass);
      stored.insert(op->result_begin(), op->result_end());
    }
  }

  /// Instructions that keep loads and stores on their side, which intrinsics do not.
  void inlinePtx(StringRef text, ValueRange operands, StringRef constraints) {
    LLVM::InlineAsmOp::create(
        b, loc, /*res=*/TypeRange(), operands, text, constraints,
        /*has_side_effects=*/true, /*is_align_stack=*/false, LLVM::tailcallkind::TailCallKind::None,
        LLVM::AsmDialectAttr::get(b.getContext(), LLVM::AsmDialect::AD_ATT), ArrayAttr());
  }

  /// Waits for the kernel before, while weights come nearer, and only then lets the next one start:
  /// the runtime's kernels rely on that order (DeviceTools.h).
  void awaitPrevious() {
    DenseSet<Value> fetched;
    for (auto &part : parts)
      for (auto [tensor, pointer] :
           llvm::zip(part->func.getArguments().drop_back(), part->pointers)) {
        auto type = cast<RankedTensorType>(tensor.getType());
        if (!type.hasStaticShape() || !fetched.insert(pointer).second)
          continue;
        int64_t bytes = type.getNumElements() * type.getElementTypeBitWidth() / 8;
        if (bytes <= kMostFetchedBytes)
          fetch(pointer, llvm::divideCeil(bytes, kLineBytes));
      }
    inlinePtx("griddepcontrol.wait;", {}, "~{memory}");
    inlinePtx("griddepcontrol.launch_dependents;", {}, "~{memory}");
  }

  /// The threads of all blocks together bring `lines` to the L2 cache.
  void fetch(Value pointer, int64_t lines) {
    Value thread = gpu::ThreadIdOp::create(b, loc, gpu::Dimension::x);
    Value block = gpu::BlockIdOp::create(b, loc, gpu::Dimension::x);
    Value blocks = gpu::GridDimOp::create(b, loc, gpu::Dimension::x);
    auto loop = scf::ForOp::create(b, loc, add(mul(block, blockThreads), thread), constant(lines),
                                   mul(blocks, blockThreads));
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(loop.getBody());
    Value at =
        arith::IndexCastOp::create(b, loc, b.getI64Type(), mul(loop.getInductionVar(), kLineBytes));
    Value line = LLVM::GEPOp::create(b, loc, pointer.getType(), b.getI8Type(), pointer, at);
    inlinePtx("prefetch.L2 [$0];", line, "l,~{memory}");
  }

  void synchronise() {
    if (packed > 1)
      NVVM::SyncWarpOp::create(
          b, loc, arith::ConstantOp::create(b, loc, b.getI32IntegerAttr(-1)).getResult());
    else
      gpu::BarrierOp::create(b, loc);
  }

  /// What a pass reads of the inputs, before anything is stored: behind a store that may be to the
  /// same place, as far as is known there, a load waits.
  void loadAhead(PassBody &pass) {
    if (!isHeld(pass))
      return;
    int64_t vectors = product(pass.tail()) / lanes, full = vectors / threads;
    for (int64_t i = 0; i < full; ++i)
      pass.loadInputs(b, indicesOf(pass, add(lane, constant(i * threads))), lanes, kAccessBytes,
                      heldOf(pass, i));
    if (int64_t left = vectors % threads) { // threads that have none of these load another one
      Value some = arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ult, lane, constant(left));
      Value index =
          arith::SelectOp::create(b, loc, some, add(lane, constant(full * threads)), constant(0));
      pass.loadInputs(b, indicesOf(pass, index), lanes, kAccessBytes, heldOf(pass, full));
    }
  }

  /// Whether a thread's vectors of a pass are few enough to be held in registers.
  bool isHeld(const PassBody &pass) const {
    return !pass.tail().empty() &&
           int64_t(llvm::divideCeil(product(pass.tail()), lanes * threads)) <= kMostAhead;
  }
  /// Of a thread's vector number `i` of passes over the same tail.
  PassBody::Held &heldOf(const PassBody &pass, int64_t i) {
    return held[{llvm::to_vector(pass.tail()), i}];
  }

  void emitPass(PassBody &pass) {
    if (pass.tail().empty()) {
      pass.emit(b, point, 1, 1);
      return;
    }
    SmallVector<Value> sums;
    Type sumType = b.getF32Type();
    if (lanes > 1)
      sumType = VectorType::get(lanes, sumType);
    for (unsigned i = 0; i < pass.numSums(); ++i)
      sums.push_back(arith::ConstantOp::create(b, loc, cast<TypedAttr>(b.getZeroAttr(sumType))));

    int64_t vectors = product(pass.tail()) / lanes, full = vectors / threads;
    if (isHeld(pass)) {
      for (int64_t i = 0; i < full; ++i)
        element(pass, add(lane, constant(i * threads)), sums, &heldOf(pass, i));
    } else if (full > 0) {
      auto loop = scf::ForOp::create(b, loc, constant(0), constant(full), constant(1), sums);
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToStart(loop.getBody());
      SmallVector<Value> next(loop.getRegionIterArgs());
      element(pass, add(mul(loop.getInductionVar(), threads), lane), next);
      if (!next.empty())
        scf::YieldOp::create(b, loc, next);
      sums.assign(loop->result_begin(), loop->result_end());
    }
    if (int64_t left = vectors % threads) {
      Value some = arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ult, lane, constant(left));
      auto ifOp = scf::IfOp::create(b, loc, ValueRange(sums).getTypes(), some,
                                    /*withElseRegion=*/!sums.empty());
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToStart(ifOp.thenBlock());
      SmallVector<Value> next(sums);
      PassBody::Held here; // what is stored here is known in this block only
      if (isHeld(pass))
        here = heldOf(pass, full);
      element(pass, add(lane, constant(full * threads)), next, isHeld(pass) ? &here : nullptr);
      if (!sums.empty()) {
        scf::YieldOp::create(b, loc, next);
        b.setInsertionPointToStart(ifOp.elseBlock());
        scf::YieldOp::create(b, loc, sums);
      }
      sums.assign(ifOp->result_begin(), ifOp->result_end());
    }
    for (auto [i, sum] : llvm::enumerate(sums))
      pass.finishSum(b, i, acrossThreads(acrossLanes(sum)), point);
  }

  /// Where vector number `index` of the point begins, in a pass's dims.
  SmallVector<Value> indicesOf(PassBody &pass, Value index) {
    SmallVector<int64_t> sizes(pass.tail());
    sizes.back() /= lanes;
    SmallVector<Value> ivs(point);
    delinearise(index, sizes, ivs);
    ivs.back() = mul(ivs.back(), lanes);
    return ivs;
  }

  /// Vector number `index` of the point, added to the sums.
  void element(PassBody &pass, Value index, SmallVector<Value> &sums,
               PassBody::Held *registers = nullptr) {
    SmallVector<Value> ivs = indicesOf(pass, index);
    for (auto [sum, term] : llvm::zip(sums, pass.emit(b, ivs, lanes, kAccessBytes, registers)))
      sum = addF(sum, term);
  }

  Value acrossLanes(Value sum) {
    if (lanes == 1)
      return sum;
    SmallVector<Value> parts;
    for (unsigned i = 0; i < lanes; ++i)
      parts.push_back(vector::ExtractOp::create(b, loc, sum, i));
    for (unsigned n = lanes / 2; n; n /= 2)
      for (unsigned i = 0; i < n; ++i)
        parts[i] = addF(parts[i], parts[i + n]);
    return parts[0];
  }

  Value acrossThreads(Value sum) {
    for (int32_t offset = kWarp / 2; offset; offset /= 2) {
      auto shuffled =
          gpu::ShuffleOp::create(b, loc, sum, offset, int32_t(kWarp), gpu::ShuffleMode::XOR);
      sum = addF(sum, shuffled.getShuffleResult());
    }
    unsigned warps = threads / kWarp;
    if (warps == 1)
      return sum;
    if (!scratch) {
      auto space = gpu::AddressSpaceAttr::get(b.getContext(), gpu::AddressSpace::Workgroup);
      scratch = kernel.addWorkgroupAttribution(
          MemRefType::get({warps}, b.getF32Type(), MemRefLayoutAttrInterface(), space), loc);
    }
    Value first =
        arith::CmpIOp::create(b, loc, arith::CmpIPredicate::eq, rem(lane, kWarp), constant(0));
    gpu::BarrierOp::create(b, loc); // the last sum has been read
    auto ifOp = scf::IfOp::create(b, loc, first, /*withElseRegion=*/false);
    {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPointToStart(ifOp.thenBlock());
      memref::StoreOp::create(b, loc, sum, scratch, div(lane, kWarp));
    }
    gpu::BarrierOp::create(b, loc);
    SmallVector<Value> parts;
    for (unsigned i = 0; i < warps; ++i)
      parts.push_back(memref::LoadOp::create(b, loc, scratch, constant(i)));
    for (unsigned n = warps / 2; n; n /= 2)
      for (unsigned i = 0; i < n; ++i)
        parts[i] = addF(parts[i], parts[i + n]);
    return parts[0];
  }

  OpBuilder &b;
  const KernelFuncs &funcs;
  Location loc;
  bool early;
  gpu::GPUFuncOp kernel;
  std::vector<std::unique_ptr<Part>> parts;
  std::map<std::pair<SmallVector<int64_t>, int64_t>, PassBody::Held> held;
  unsigned lanes = 1, threads = kWarp, packed = 1, blockThreads = kWarp;
  bool together = false; // several blocks on a multiprocessor are asked for
  Value lane;            // the thread's number within its point
  SmallVector<Value> point;
  Value scratch;
};

} // namespace

LogicalResult moira::kernels::lowerToGpuLoops(ModuleOp module, bool early) {
  OpBuilder b(module.getContext());
  b.setInsertionPointToEnd(module.getBody());
  module->setAttr(gpu::GPUDialect::getContainerModuleAttrName(), b.getUnitAttr());
  auto gpuModule = gpu::GPUModuleOp::create(b, module.getLoc(), "kernels");
  for (const KernelFuncs &funcs : getKernels(module)) {
    b.setInsertionPointToEnd(gpuModule.getBody());
    if (failed(GpuKernel(b, funcs, early).build()))
      return failure();
    for (func::FuncOp part : funcs.parts)
      part.erase();
  }
  return success();
}
