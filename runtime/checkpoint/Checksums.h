//===- Checksums.h - a checkpoint against its checksums ---------*- C++ -*-===//
// The side file model.checksums.jsonl: for every file its size and the CRC-32C of its header, for
// every tensor type, shape and the CRC-32C of its bytes. Any changed byte is found, and the tensor
// or file that it lies in is named.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_CHECKSUMS_H
#define MOIRA_CHECKPOINT_CHECKSUMS_H

#include "moira/rt/Checkpoint.h"

#include <optional>

namespace moira::ckpt {

inline constexpr const char *kChecksumFile = "model.checksums.jsonl";

/// Writes (or replaces) the side file of the checkpoint in `directory`.
rt::Status writeChecksums(const std::string &directory);

/// The checksum that the side file has for each of checkpoint.tensors(), for who reads them anyway;
/// none for all where there is no side file. ChecksumMismatch if it cannot be read as one.
rt::Expected<std::vector<std::optional<uint32_t>>> readSums(const rt::Checkpoint &checkpoint);

struct Verified {
  uint64_t tensors = 0, bytes = 0, files = 0;
  bool checksums = false; // there was a side file
};

/// Opens the checkpoint, which proves its headers, index and the absence of holes, and where there
/// is a side file compares every byte. ChecksumMismatch with every tensor and file that differs,
/// and what opening finds.
rt::Expected<Verified> verifyCheckpoint(const std::string &directory);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_CHECKSUMS_H
