//===- ModelSource.cpp - Hugging Face directories as sources --------------===//
#include "ModelSource.h"

#include "Checksums.h"
#include "moira/rt/PlanFile.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::Status;

/// What is carried along: names, or ends of names.
constexpr const char *kCompanions[] = {"generation_config.json",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "vocab.json",
                                       "vocab.txt",
                                       "merges.txt",
                                       "chat_template.json",
                                       "preprocessor_config.json",
                                       "README.md",
                                       "LICENSE",
                                       "LICENSE.txt",
                                       "LICENSE.md"};
constexpr const char *kCompanionEnds[] = {".model", ".jinja", ".tiktoken"};

/// Adds up a tensor that is read from front to back; of others nothing can be said.
struct RunningSum {
  std::optional<uint32_t> wanted;
  uint64_t read = 0;
  uint32_t sum = 0;

  void add(uint64_t offset, std::span<const uint8_t> bytes) {
    if (!wanted || (offset != read && offset != 0))
      return;
    sum = rt::crc32c(bytes, offset == 0 ? 0 : sum);
    read = offset + bytes.size();
  }
  bool differs(uint64_t bytes) const { return wanted && read == bytes && sum != *wanted; }
};

class HuggingFaceSource final : public ModelSource {
public:
  HuggingFaceSource(std::string directory, Config config, rt::Checkpoint checkpoint)
      : directory(std::move(directory)), itsConfig(std::move(config)),
        checkpoint(std::move(checkpoint)) {
    for (const rt::Checkpoint::Entry &entry : this->checkpoint.tensors())
      specs.push_back({entry.info->name, entry.info->type, entry.info->shape});
  }

  const std::string &path() const override { return directory; }
  const Config &config() const override { return itsConfig; }
  const std::vector<rt::TensorSpec> &tensors() const override { return specs; }

  Status read(size_t tensor, uint64_t offset, std::span<uint8_t> to) const override {
    if (Status status = openSums(); !status)
      return status;
    const rt::Checkpoint::Entry &entry = checkpoint.tensors()[tensor];
    std::span<const uint8_t> data = checkpoint.data(entry).subspan(offset, to.size());
    std::memcpy(to.data(), data.data(), to.size());
    sums[tensor].add(offset, to);
    if (sums[tensor].differs(entry.info->bytes))
      return damaged(entry, sums[tensor]);
    if (offset + to.size() == entry.info->bytes)
      checkpoint.release(entry);
    return {};
  }

  std::vector<std::string> companions() const override { return companionsOf(directory); }

private:
  /// At the first reading: who only looks at the model may be about to write them anew.
  Status openSums() const {
    if (!sums.empty())
      return {};
    rt::Expected<std::vector<std::optional<uint32_t>>> wanted = readSums(checkpoint);
    if (!wanted)
      return wanted.takeStatus();
    for (std::optional<uint32_t> sum : *wanted)
      sums.push_back({sum});
    return {};
  }

  static Status damaged(const rt::Checkpoint::Entry &entry, const RunningSum &sum) {
    return Status(ErrorId::ChecksumMismatch,
                  rt::format("%s: tensor %s has the checksum %08x, %s says %08x; fetch the weights "
                             "again, or write new checksums with moe-ckpt verify "
                             "--write-checksums if they were changed on purpose",
                             entry.file->path().c_str(), rt::quoteName(entry.info->name).c_str(),
                             sum.sum, kChecksumFile, *sum.wanted));
  }

  std::string directory;
  Config itsConfig;
  rt::Checkpoint checkpoint;
  std::vector<rt::TensorSpec> specs;
  mutable std::vector<RunningSum> sums; // by tensor; empty before the first reading
};

} // namespace

std::vector<std::string> companionsOf(const std::string &directory) {
  std::vector<std::string> out;
  std::error_code error;
  for (const auto &file : std::filesystem::directory_iterator(directory, error)) {
    std::string name = file.path().filename().string();
    auto ends = [&](const char *end) { return name.ends_with(end); };
    if ((std::ranges::find(kCompanions, name) != std::end(kCompanions) ||
         std::ranges::any_of(kCompanionEnds, ends)) &&
        file.is_regular_file(error)) // caches keep links to regular files
      out.push_back(file.path().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::optional<size_t> ModelSource::find(std::string_view name) const {
  const std::vector<rt::TensorSpec> &all = tensors();
  auto it = std::lower_bound(
      all.begin(), all.end(), name,
      [](const rt::TensorSpec &tensor, std::string_view name) { return tensor.name < name; });
  if (it == all.end() || it->name != name)
    return std::nullopt;
  return static_cast<size_t>(it - all.begin());
}

rt::Expected<std::unique_ptr<ModelSource>> openModel(const std::string &directory) {
  Status problems;
  rt::Expected<Config> config = Config::open(directory + "/config.json");
  if (!config)
    problems.append(config.takeStatus());
  rt::Expected<rt::Checkpoint> checkpoint = rt::Checkpoint::open(directory);
  if (!checkpoint)
    problems.append(checkpoint.takeStatus());
  if (!problems)
    return problems;
  return std::unique_ptr<ModelSource>(
      std::make_unique<HuggingFaceSource>(directory, std::move(*config), std::move(*checkpoint)));
}

uint64_t elementsOf(const rt::TensorSpec &tensor) {
  uint64_t n = 1;
  for (int64_t d : tensor.shape)
    n *= static_cast<uint64_t>(d);
  return n;
}

uint64_t bytesOf(rt::TensorType type, uint64_t elements) {
  return elements * static_cast<uint64_t>(rt::bitsOf(type)) / 8;
}

} // namespace moira::ckpt
