//===- SelfTest.cpp - do the collectives work here? -------------------------===//
// See SelfTest.h.
//===----------------------------------------------------------------------===//
#include "SelfTest.h"

#include "moira/rt/Agree.h"

#include "CudaSupport.h"
#include "DeviceGroups.h"

#include <chrono>
#include <thread>

namespace moira::rt::cuda {

namespace {

constexpr size_t kElements = size_t(4) << 20; // floats that each rank has before a collective
constexpr int kRounds = 10;

const fb::CollectiveKind kKinds[] = {fb::CollectiveKind::all_reduce, fb::CollectiveKind::all_gather,
                                     fb::CollectiveKind::reduce_scatter,
                                     fb::CollectiveKind::all_to_all};

/// Rank r's element i. Small whole numbers, so that sums are exact in any order.
float valueOf(int rank, size_t i) {
  return static_cast<float>((i * 31 + static_cast<size_t>(rank) * 7) % 101);
}

/// What rank `me` of `ranks` must find at i after the collective.
float expectedAt(fb::CollectiveKind kind, int ranks, int me, size_t i) {
  size_t block = kElements / static_cast<size_t>(ranks);
  auto sum = [&](size_t at) {
    float total = 0;
    for (int r = 0; r < ranks; ++r)
      total += valueOf(r, at);
    return total;
  };
  switch (kind) {
  case fb::CollectiveKind::all_reduce:
    return sum(i);
  case fb::CollectiveKind::all_gather:
    return valueOf(static_cast<int>(i / kElements), i % kElements);
  case fb::CollectiveKind::reduce_scatter:
    return sum(static_cast<size_t>(me) * block + i);
  case fb::CollectiveKind::all_to_all:
    return valueOf(static_cast<int>(i / block), static_cast<size_t>(me) * block + i % block);
  }
  return 0;
}

struct Test {
  Communicator &host;
  const DeviceSetup &device;
  Group world;
  std::vector<BoundInstr> instrs; // one a kind
  DeviceBlock in, out;
  Stream stream;
  Event finished;

  Status prepare() {
    if (Status s = check(cudaSetDevice(device.device), "choosing a device"); !s)
      return s;
    size_t ranks = static_cast<size_t>(host.size());
    Expected<DeviceBlock> source = DeviceBlock::allocate(kElements * 4, "the self test");
    Expected<DeviceBlock> target = DeviceBlock::allocate(kElements * 4 * ranks, "the self test");
    Expected<Stream> madeStream = Stream::make();
    Expected<Event> madeEvent = Event::make();
    Status problems = source.takeStatus();
    problems.append(target.takeStatus());
    problems.append(madeStream.takeStatus());
    problems.append(madeEvent.takeStatus());
    if (!problems)
      return problems;
    in = std::move(*source);
    out = std::move(*target);
    stream = std::move(*madeStream);
    finished = std::move(*madeEvent);
    std::vector<float> values(kElements);
    for (size_t i = 0; i < kElements; ++i)
      values[i] = valueOf(host.rank(), i);
    cudaError_t sent = cudaMemcpy(in.data(), values.data(), kElements * 4, cudaMemcpyHostToDevice);
    if (sent == cudaSuccess) // the stream of the collectives does not wait for this one
      sent = cudaStreamSynchronize(nullptr);
    if (Status s = check(sent, "the self test"); !s)
      return s;
    for (fb::CollectiveKind kind : kKinds) {
      size_t count = kind == fb::CollectiveKind::all_gather       ? kElements * ranks
                     : kind == fb::CollectiveKind::reduce_scatter ? kElements / ranks
                                                                  : kElements;
      BoundInstr instr;
      instr.kind = fb::InstrKind::collective;
      instr.collective.kind = kind;
      instr.group = &world;
      instr.in = {{in.data(), fb::DType::f32, {static_cast<int64_t>(kElements)}}};
      instr.out = {{out.data(), fb::DType::f32, {static_cast<int64_t>(count)}}};
      instrs.push_back(std::move(instr));
    }
    return {};
  }

  Status wait(DeviceGroups &groups) {
    if (Status s = check(cudaEventRecord(finished.get(), stream.get()), "the self test"); !s)
      return s;
    auto start = std::chrono::steady_clock::now();
    for (;;) {
      cudaError_t code = cudaEventQuery(finished.get());
      if (code != cudaErrorNotReady)
        return check(code, "the self test");
      if (Status news = host.news(); !news)
        return news;
      if (Status error = groups.asyncError(); !error)
        return error;
      std::chrono::duration<double> since = std::chrono::steady_clock::now() - start;
      if (device.timeoutSeconds > 0 && since.count() > device.timeoutSeconds)
        return Status(ErrorId::RankFailed, format("rank %d: the self test did not end within %g s",
                                                  host.rank(), device.timeoutSeconds));
      std::this_thread::yield();
    }
  }

  Expected<std::string> run(const BoundInstr &instr, DeviceGroups &groups) {
    const char *name = fb::EnumNameCollectiveKind(instr.collective.kind);
    if (Status s = groups.run(instr, stream.get()); !s)
      return s;
    if (Status s = wait(groups); !s)
      return s;
    std::vector<float> values(static_cast<size_t>(instr.out[0].elements()));
    if (Status s =
            check(cudaMemcpy(values.data(), out.data(), values.size() * 4, cudaMemcpyDeviceToHost),
                  "the self test");
        !s)
      return s;
    for (size_t i = 0; i < values.size(); ++i)
      if (float expected = expectedAt(instr.collective.kind, host.size(), host.rank(), i);
          values[i] != expected)
        return Status(ErrorId::Internal,
                      format("self test: %s gave rank %d the value %g at %zu instead of %g", name,
                             host.rank(), values[i], i, expected));
    auto start = std::chrono::steady_clock::now();
    for (int round = 0; round < kRounds; ++round)
      if (Status s = groups.run(instr, stream.get()); !s)
        return s;
    if (Status s = wait(groups); !s)
      return s;
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    return format("%s: right, %.2f GB/s (%zu MiB a rank, %.3f ms)", name,
                  static_cast<double>(kElements) * 4 * kRounds / took.count() / 1e9,
                  kElements * 4 >> 20, took.count() / kRounds * 1e3);
  }
};

} // namespace

Expected<std::vector<std::string>> testCollectives(Communicator &host, const DeviceSetup &device) {
  Test test{host, device, worldGroup(host), {}, {}, {}, {}, {}};
  if (Status s = agree(test.prepare(), host, "preparing the self test"); !s)
    return s;
  prepareNccl(host.rank(), device.shared, device.local);
  Expected<std::unique_ptr<DeviceGroups>> groups =
      DeviceGroups::make(std::array{&std::as_const(test.instrs)}, host, device.timeoutSeconds);
  if (!groups)
    return groups.takeStatus();
  std::vector<std::string> lines = {format("collectives of %d rank%s on CUDA devices%s",
                                           host.size(), host.size() == 1 ? "" : "s",
                                           device.shared ? ", which share one" : "")};
  for (const BoundInstr &instr : test.instrs) {
    Expected<std::string> line = test.run(instr, **groups);
    if (!line) {
      if (line.status().diagnostics().front().id != ErrorId::Internal)
        (*groups)->abort();
      return line.takeStatus();
    }
    lines.push_back(*line);
  }
  if (Status s = agree(Status(), host, "ending the self test"); !s)
    return s;
  if (host.rank() != 0)
    lines.clear();
  return lines;
}

} // namespace moira::rt::cuda
