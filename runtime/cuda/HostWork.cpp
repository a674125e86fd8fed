//===- HostWork.cpp - what a device's host does in a step -------------------===//
// See HostWork.h.
//===----------------------------------------------------------------------===//
#include "HostWork.h"

#include "moira/rt/HostThreads.h"
#include "moira/rt/SafeTensors.h"

#include <new>

namespace moira::rt::cuda {

cudaError_t HostWork::enqueue(size_t index, const BoundInstr &instr, const std::string &place,
                              cudaStream_t stream) {
  Job &job = jobs[index];
  job = {this, &instr, place};
  return cudaLaunchHostFunc(stream, run, &job);
}

void HostWork::reset() {
  std::lock_guard lock(mutex);
  failed = {};
}

Status HostWork::failure() const {
  std::lock_guard lock(mutex);
  return failed;
}

Status HostWork::run(const BoundInstr &instr) const {
  if (instr.kind == fb::InstrKind::call)
    return runHostCall(instr.call, CallFlavor::fast, instr.in, instr.out, instr.params);
  copyBox(Box::all(instr.out[0].shape), instr.out[0].data, instr.box, instr.in[0].data,
          bytesOf(instr.in[0].dtype));
  return {};
}

void HostWork::run(void *data) {
  const Job &job = *static_cast<const Job *>(data);
  HostWork &owner = *job.owner;
  setHostThreads(owner.threads); // this thread's are its own
  Status status;
  try {
    status = owner.run(*job.instr);
  } catch (const std::bad_alloc &) {
    status = Status(ErrorId::OutOfMemory, "memory for a call's intermediate values");
  }
  if (status)
    return;
  std::lock_guard lock(owner.mutex);
  if (!owner.failed)
    return;
  for (const Diagnostic &d : status.diagnostics())
    owner.failed.add(d.id, job.place + ": " + d.message);
}

} // namespace moira::rt::cuda
