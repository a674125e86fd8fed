//===- ProductSplit.cu - dense products of some rows, on Hopper --------------===//
// Of up to 32 rows a product takes as long as reading its weights, and has too few columns for all
// multiprocessors. So a cluster of blocks makes 64 columns: each block a part of the depth, all of
// whose weights it asks for at once, before the rows are there. A block gets from each of the
// others their sums of its 16 columns, and adds them in the order of the blocks.
//===----------------------------------------------------------------------===//
#include "ProductSplit.h"
#include "TensorMaps.h"
#include "Warpgroups.h"

namespace moira::rt::cuda {
namespace {

constexpr int kColumns = 64, kRows = 32, kDepth = 64, kThreads = 128;
/// Blocks of a cluster: each of a block's warps has the columns that one of them stores.
constexpr int kBlocks = kThreads / 32;
constexpr int kStages = 8;
constexpr uint32_t kWeightBytes = kColumns * kDepth * sizeof(bf16),
                   kStageBytes = kWeightBytes + kRows * kDepth * sizeof(bf16);
/// What a block is sent: four sums of each lane and eight rows, from each block.
constexpr int kFours = kRows / 8 * 32;
constexpr uint32_t kInboxAt = kStages * kStageBytes,
                   kBarriersAt = kInboxAt + kBlocks * kFours * sizeof(float4),
                   kBytes = kBarriersAt + kStages * sizeof(uint64_t);
constexpr int64_t kMostColumns = 8192, kLeastDepth = 512;

/// To the place in block `rank` of the cluster that is `address` in this one.
__device__ inline void send(uint32_t address, uint32_t rank, float a, float b, float c, float d) {
  asm volatile("{\n"
               ".reg .b32 there;\n"
               "mapa.shared::cluster.u32 there, %0, %1;\n"
               "st.shared::cluster.v4.f32 [there], {%2, %3, %4, %5};\n"
               "}\n" ::"r"(address),
               "r"(rank), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
}

/// `steps` of depth a block. `settled`: w may be read before the kernel before this one has ended.
template <typename Out>
__global__ void __launch_bounds__(kThreads)
    splitDepth(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
               Out *out, int32_t m, int32_t n, int32_t steps, bool settled) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const uint32_t base = sharedAddress(sharedBytes), rank = clusterRank();
  if (base % 1024 != 0)
    __trap();
  auto weightsOf = [&](int stage) { return base + stage * kStageBytes; };
  auto rowsOf = [&](int stage) { return weightsOf(stage) + kWeightBytes; };
  auto full = [&](int stage) { return base + kBarriersAt + stage * 8; };
  const int32_t column0 = int32_t(blockIdx.x / kBlocks) * kColumns,
                depth0 = int32_t(rank) * steps * kDepth;
  const int lane = laneNumber(), warp = int(threadIdx.x) / 32;
  const bool leader = threadIdx.x == 0;
  const uint64_t policy = readOncePolicy();
  auto askForWeights = [&](int step) {
    const int stage = step % kStages;
    arriveExpecting(full(stage), kStageBytes);
    copyBox(weightsOf(stage), w, depth0 + step * kDepth, column0, full(stage), policy);
  };
  auto askForRows = [&](int step) {
    const int stage = step % kStages;
    copyBox(rowsOf(stage), x, depth0 + step * kDepth, 0, full(stage));
  };
  if (leader) {
    for (int s = 0; s < kStages; ++s)
      initBarrier(full(s), 1);
    publishBarriers();
  }
  if (!settled)
    awaitPrevious();
  if (leader)
    for (int s = 0; s < min(steps, kStages); ++s)
      askForWeights(s);
  if (settled)
    awaitPrevious();
  if (leader)
    for (int s = 0; s < min(steps, kStages); ++s)
      askForRows(s);
  clusterSync(); // barriers are there, and so are the blocks that something is sent to

  float sum[kRows / 2] = {};
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    waitFor(full(stage), uint32_t(step / kStages & 1));
    const uint64_t left = tileDescriptor(weightsOf(stage)), right = tileDescriptor(rowsOf(stage));
    beginProducts();
#pragma unroll
    for (int d = 0; d < kDepth / 16; ++d)
      multiply64x32(sum, left + d * kDescriptorStep, right + d * kDescriptorStep, true);
    commitProducts();
    waitProducts<0>();
    if (step + kStages < steps) {
      __syncthreads(); // the stage is read
      if (leader) {
        askForWeights(step + kStages);
        askForRows(step + kStages);
      }
    }
  }

  // Warp i has the columns that block i stores.
  const uint32_t inbox = base + kInboxAt;
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j)
    send(inbox + uint32_t(rank * kFours + j * 32 + lane) * sizeof(float4), uint32_t(warp),
         sum[j * 4], sum[j * 4 + 1], sum[j * 4 + 2], sum[j * 4 + 3]);
  clusterSync();
  float total[4] = {};
#pragma unroll
  for (int from = 0; from < kBlocks; ++from) {
    const float4 part =
        reinterpret_cast<const float4 *>(sharedBytes + kInboxAt)[from * kFours + threadIdx.x];
    total[0] += part.x;
    total[1] += part.y;
    total[2] += part.z;
    total[3] += part.w;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int32_t row = warp * 8 + lane % 4 * 2 + i % 2,
                  column = column0 + int32_t(rank) * 16 + i / 2 * 8 + lane / 4;
    if (row < m && column < n)
      out[int64_t(row) * n + column] = fromFloat<Out>(total[i]);
  }
}

} // namespace

bool fitsSplit(const GroupedProduct &p) {
  return p.inType == fb::DType::bf16 && !p.groups && p.m > 0 && p.m <= kRows && p.n > 0 &&
         p.n <= kMostColumns && p.k >= kLeastDepth && p.k <= INT32_MAX / 2 && p.k % kChunk == 0 &&
         addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0;
}

Status launchProductSplit(const Call &call, const GroupedProduct &p) {
  CUtensorMap w{}, x{};
  if (!describeMatrix(w, p.w, p.n, p.k, kColumns) || !describeMatrix(x, p.x, p.m, p.k, kRows))
    return noTensorMap(call);
  return withFloat(p.outType, [&]<typename Out>(Out) {
    auto kernel = splitDepth<Out>;
    if (Status s = allowSharedBytes(call, kernel, kBytes); !s)
      return s;
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {kBlocks, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(ceilDiv(p.n, kColumns)) * kBlocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kBytes;
    config.stream = call.stream();
    config.attrs = attributes;
    config.numAttrs = call.context.early ? 2 : 1;
    const auto steps = int32_t(ceilDiv(ceilDiv(p.k, kDepth), kBlocks));
    return checked(call.name, cudaLaunchKernelEx(&config, kernel, w, x, static_cast<Out *>(p.out),
                                                 int32_t(p.m), int32_t(p.n), steps, p.settled));
  });
}

} // namespace moira::rt::cuda
