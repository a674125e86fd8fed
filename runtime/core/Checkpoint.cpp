//===- Checkpoint.cpp - a directory of safetensors files ------------------===//
// The index file and its agreement with the shards.
//===----------------------------------------------------------------------===//
#include "moira/rt/Checkpoint.h"

#include "JsonLimits.h"
#include "MappedFile.h"

#include <algorithm>
#include <deque>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

namespace moira::rt {
namespace {

constexpr uint64_t kIndexLimit = uint64_t(32) << 20;
constexpr size_t kShardLimit = 100'000;
constexpr size_t kShown = 20;

struct Index {
  struct Row {
    std::string tensor;
    uint32_t shard;
  };
  std::deque<Row> rows; // sorted by tensor once read
  std::vector<std::string> shards;
};

/// Reads {"metadata": …, "weight_map": {tensor: file}}; other top-level keys are skipped.
class IndexReader : public nlohmann::json_sax<nlohmann::json> {
public:
  IndexReader(const std::string &path, Index &index) : path(path), index(index) {}
  Status status;
  bool mapSeen = false;

  bool start_object(size_t) override {
    if (depth == 1 && topKey == "weight_map") {
      if (mapSeen)
        return fail("'weight_map' stands twice");
      mapSeen = true;
    }
    return enter(depth < 2 || topKey != "weight_map", "an object in weight_map");
  }
  bool end_object() override { return --depth, true; }
  bool start_array(size_t) override {
    return enter(depth > 0 && topKey != "weight_map", "a list where a file name belongs");
  }
  bool end_array() override { return --depth, true; }
  bool key(string_t &text) override {
    (depth == 1 ? topKey : tensor) = std::move(text);
    return true;
  }
  bool string(string_t &text) override {
    if (!inMap())
      return other();
    auto [it, added] = shardNumber.try_emplace(text, index.shards.size());
    if (added) {
      if (index.shards.size() == kShardLimit)
        return fail(format("more than %zu files", kShardLimit));
      if (text.empty() || text[0] == '.' || text.find('/') != std::string::npos ||
          text.find('\0') != std::string::npos)
        return fail(format("tensor %s lies in %s, which is not the name of a file beside the index",
                           quoteName(tensor).c_str(), quoteName(text).c_str()));
      index.shards.push_back(text);
    }
    index.rows.push_back({std::move(tensor), it->second});
    return true;
  }
  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(number_integer_t) override { return other(); }
  bool number_unsigned(number_unsigned_t) override { return other(); }
  bool number_float(number_float_t, const string_t &) override { return other(); }
  bool binary(binary_t &) override { return other(); }
  bool parse_error(size_t position, const std::string &,
                   const nlohmann::json::exception &) override {
    return fail(format("not valid JSON at byte %zu", position));
  }

private:
  bool inMap() const { return depth == 2 && topKey == "weight_map"; }
  bool enter(bool allowed, const char *what) {
    // The parser keeps one bit a level; the limit keeps that and our own counting small.
    if (!allowed || depth == 64)
      return fail(allowed ? "nested too deep" : what);
    ++depth;
    return true;
  }
  bool other() {
    if (inMap())
      return fail(format("the file of tensor %s is not a string", quoteName(tensor).c_str()));
    if (depth == 0 || (depth == 1 && topKey == "weight_map"))
      return fail("a value where an object belongs");
    return true;
  }
  bool fail(const std::string &what) {
    status.add(ErrorId::BadIndex, path + ": " + what);
    return false;
  }

  std::string path;
  Index &index;
  int depth = 0;
  std::string topKey, tensor;
  std::map<std::string, uint32_t, std::less<>> shardNumber;
};

Expected<Index> readIndex(const std::string &path) {
  Expected<MappedFile> map = MappedFile::open(path);
  if (!map)
    return map.takeStatus();
  auto fail = [&](const std::string &what) {
    return Status(ErrorId::BadIndex, path + ": " + what);
  };
  if (map->fileBytes > kIndexLimit)
    return fail(format("%llu bytes, at most %llu are allowed",
                       static_cast<unsigned long long>(map->fileBytes),
                       static_cast<unsigned long long>(kIndexLimit)));
  if (scanJson(map->bytes).longestString > kJsonStringLimit)
    return fail("a string of more than 1 MiB");
  Index index;
  IndexReader reader(path, index);
  if (!nlohmann::json::sax_parse(map->bytes.begin(), map->bytes.end(), &reader))
    return reader.status.ok() ? fail("not valid JSON") : std::move(reader.status);
  if (!reader.mapSeen)
    return fail("no object 'weight_map'");
  std::sort(index.rows.begin(), index.rows.end(),
            [](const Index::Row &a, const Index::Row &b) { return a.tensor < b.tensor; });
  Status twice;
  for (size_t i = 1; i < index.rows.size() && twice.diagnostics().size() < kShown; ++i)
    if (index.rows[i].tensor == index.rows[i - 1].tensor)
      twice.add(ErrorId::BadIndex, format("%s: tensor %s stands twice", path.c_str(),
                                          quoteName(index.rows[i].tensor).c_str()));
  if (!twice)
    return twice;
  return index;
}

} // namespace

Expected<Checkpoint> Checkpoint::open(const std::string &path, SafeTensorsOptions options) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0)
    return Status(ErrorId::FileNotFound, path + ": no such file or directory");
  Checkpoint checkpoint;
  checkpoint.directory = path;
  auto files = std::make_shared<std::vector<SafeTensorsFile>>();
  Status problems;

  Index index;
  std::string indexPath = path + "/model.safetensors.index.json";
  bool sharded = false;
  std::vector<std::string> names;
  if (!S_ISDIR(info.st_mode)) {
    names.push_back(path);
  } else if (stat((path + "/model.safetensors").c_str(), &info) == 0) {
    // As every loader of such directories does: the single file wins.
    names.push_back(path + "/model.safetensors");
  } else if (stat(indexPath.c_str(), &info) == 0) {
    sharded = true;
    Expected<Index> read = readIndex(indexPath);
    if (!read)
      return read.takeStatus();
    index = std::move(*read);
    for (const std::string &shard : index.shards)
      names.push_back(path + "/" + shard);
  } else {
    return Status(ErrorId::FileNotFound,
                  path + ": neither model.safetensors nor model.safetensors.index.json is there" +
                      (stat((path + "/pytorch_model.bin").c_str(), &info) == 0
                           ? "; pytorch_model.bin is not read, as unpickling runs code: load it "
                             "with transformers and save_pretrained() it"
                           : ""));
  }

  size_t tensors = 0;
  for (const std::string &name : names) {
    Expected<SafeTensorsFile> file = SafeTensorsFile::open(name, options);
    if (!file) {
      if (problems.diagnostics().size() < kShown)
        problems.append(file.takeStatus());
      files->emplace_back(); // keeps the shard numbers right
      continue;
    }
    tensors += file->tensors().size();
    files->push_back(std::move(*file));
  }
  if (!problems)
    return problems;

  checkpoint.entries.reserve(tensors);
  for (const SafeTensorsFile &file : *files)
    for (const TensorInfo &tensor : file.tensors())
      checkpoint.entries.push_back({&tensor, &file});
  std::sort(checkpoint.entries.begin(), checkpoint.entries.end(),
            [](const Entry &a, const Entry &b) {
              int order = a.info->name.compare(b.info->name);
              return order != 0 ? order < 0 : a.file < b.file;
            });
  checkpoint.files = files;
  if (!sharded)
    return checkpoint;

  auto add = [&](ErrorId id, const std::string &what) {
    if (problems.diagnostics().size() < kShown)
      problems.add(id, what);
  };
  for (const Index::Row &row : index.rows)
    if (!(*files)[row.shard].find(row.tensor))
      add(ErrorId::MissingTensor,
          format("%s: tensor %s is not there, but model.safetensors.index.json says so",
                 names[row.shard].c_str(), quoteName(row.tensor).c_str()));
  for (const Entry &entry : checkpoint.entries) {
    auto it = std::lower_bound(
        index.rows.begin(), index.rows.end(), entry.info->name,
        [](const Index::Row &row, const std::string &name) { return row.tensor < name; });
    if (it == index.rows.end() || it->tensor != entry.info->name)
      add(ErrorId::ExtraTensor,
          format("%s: tensor %s is not in model.safetensors.index.json", entry.file->path().c_str(),
                 quoteName(entry.info->name).c_str()));
    else if (&(*files)[it->shard] != entry.file)
      add(ErrorId::ExtraTensor,
          format("%s: tensor %s is here too, model.safetensors.index.json puts it in %s",
                 entry.file->path().c_str(), quoteName(entry.info->name).c_str(),
                 quoteName(index.shards[it->shard]).c_str()));
  }
  if (!problems)
    return problems;
  return checkpoint;
}

const Checkpoint::Entry *Checkpoint::find(std::string_view name) const {
  auto it = std::lower_bound(entries.begin(), entries.end(), name,
                             [](const Entry &e, std::string_view n) { return e.info->name < n; });
  return it != entries.end() && it->info->name == name ? &*it : nullptr;
}

bool Checkpoint::truncated() const {
  return std::any_of(files->begin(), files->end(),
                     [](const SafeTensorsFile &file) { return file.truncated(); });
}

} // namespace moira::rt
