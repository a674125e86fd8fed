//===- MemoryDisk.h - a disk that can fail and lose power -------*- C++ -*-===//
// A FileSystem in memory that knows what is durable: contents after sync, names after
// syncDirectory. Any operation can be made to fail, or to be the last one before a crash.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_MEMORYDISK_H
#define MOIRA_TEST_UNIT_MEMORYDISK_H

#include "moira/rt/FileSystem.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>

namespace moira::test {

class MemoryDisk final : public rt::FileSystem {
public:
  using Bytes = std::vector<uint8_t>;

  MemoryDisk() { root->directory = true; }

  /// Changing operations so far.
  int operations() const { return count; }
  /// The operation with this number, and all after it, have no effect but half of an append.
  void crashAt(int operation) { crash = operation, dead = false, count = 0; }
  /// Operations from this number on fail with `error`, `times` of them.
  void failAt(int operation, int error, int times) {
    firstFailure = operation, lastFailure = operation + times - 1, failure = error, count = 0;
  }
  bool crashed() const { return dead; }
  /// The machine starts again. With `power` lost, only what was durable is there.
  void restart(bool power) {
    if (power)
      forget(*root);
    crash = firstFailure = never;
    lastFailure = 0;
    dead = false;
    opened.clear();
  }
  /// While held, appends wait.
  void hold(bool on) {
    std::lock_guard lock(mutex);
    held = on;
    changed.notify_all();
  }
  /// The present contents of a file, to damage.
  Bytes &contents(const std::string &path) { return find(path)->now; }

  int create(const std::string &path, File &file) override {
    std::lock_guard lock(mutex);
    if (int error = tick())
      return error;
    auto [parent, name] = place(path);
    if (!parent)
      return ENOENT;
    auto [it, added] = parent->names.try_emplace(name, std::make_shared<Node>());
    if (!added)
      return EEXIST;
    opened.push_back(it->second);
    file = static_cast<File>(opened.size()) - 1;
    return 0;
  }
  int append(File file, std::span<const uint8_t> bytes) override {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !held; });
    int error = tick();
    if (error && !(dead && count == crash))
      return error;
    Bytes &now = opened[file]->now;
    now.insert(now.end(), bytes.begin(), bytes.begin() + (error ? bytes.size() / 2 : bytes.size()));
    return error;
  }
  int sync(File file) override {
    std::lock_guard lock(mutex);
    if (int error = tick())
      return error;
    opened[file]->durable = opened[file]->now;
    return 0;
  }
  int close(File) override { return 0; }
  int makeDirectory(const std::string &path) override {
    std::lock_guard lock(mutex);
    if (int error = tick())
      return error;
    auto [parent, name] = place(path);
    if (!parent)
      return ENOENT;
    auto [it, added] = parent->names.try_emplace(name, std::make_shared<Node>());
    if (!added)
      return EEXIST;
    it->second->directory = true;
    return 0;
  }
  int syncDirectory(const std::string &path) override {
    std::lock_guard lock(mutex);
    if (int error = tick())
      return error;
    std::shared_ptr<Node> node = find(path);
    if (!node)
      return ENOENT;
    node->durableNames = node->names;
    return 0;
  }
  int rename(const std::string &from, const std::string &to) override {
    std::lock_guard lock(mutex);
    if (int error = tick())
      return error;
    auto [source, oldName] = place(from);
    auto [target, newName] = place(to);
    if (!source || !target || !source->names.count(oldName))
      return ENOENT;
    auto there = target->names.find(newName);
    if (there != target->names.end() && there->second->directory && !there->second->names.empty())
      return ENOTEMPTY;
    target->names[newName] = source->names[oldName];
    source->names.erase(oldName);
    return 0;
  }
  int removeFile(const std::string &path) override { return remove(path, false); }
  int removeDirectory(const std::string &path) override { return remove(path, true); }

  int open(const std::string &path, File &file, uint64_t &bytes) override {
    std::lock_guard lock(mutex);
    std::shared_ptr<Node> node = find(path);
    if (!node)
      return ENOENT;
    if (node->directory)
      return EISDIR;
    opened.push_back(node);
    file = static_cast<File>(opened.size()) - 1;
    bytes = node->now.size();
    return 0;
  }
  int read(File file, uint64_t offset, std::span<uint8_t> bytes) override {
    std::lock_guard lock(mutex);
    const Bytes &now = opened[file]->now;
    if (offset + bytes.size() > now.size())
      return ENODATA;
    std::copy_n(now.begin() + static_cast<ptrdiff_t>(offset), bytes.size(), bytes.begin());
    return 0;
  }
  int list(const std::string &path, std::vector<std::string> &names) override {
    std::lock_guard lock(mutex);
    std::shared_ptr<Node> node = find(path);
    if (!node)
      return ENOENT;
    if (!node->directory)
      return ENOTDIR;
    names.clear();
    for (const auto &[name, child] : node->names)
      names.push_back(name);
    return 0;
  }

private:
  struct Node {
    bool directory = false;
    Bytes now, durable;
    std::map<std::string, std::shared_ptr<Node>> names, durableNames;
  };

  static void forget(Node &node) {
    node.now = node.durable;
    node.names = node.durableNames;
    for (auto &[name, child] : node.names)
      forget(*child);
  }
  int tick() {
    ++count;
    if (count == crash)
      dead = true;
    if (dead)
      return EIO;
    return count >= firstFailure && count <= lastFailure ? failure : 0;
  }
  int remove(const std::string &path, bool directory) {
    std::lock_guard lock(mutex);
    if (int error = tick())
      return error;
    auto [parent, name] = place(path);
    if (!parent || !parent->names.count(name))
      return ENOENT;
    Node &node = *parent->names[name];
    if (node.directory != directory)
      return directory ? ENOTDIR : EISDIR;
    if (!node.names.empty())
      return ENOTEMPTY;
    parent->names.erase(name);
    return 0;
  }
  std::shared_ptr<Node> find(const std::string &path) {
    std::shared_ptr<Node> node = root;
    for (size_t at = 0; at < path.size() && node;) {
      size_t end = std::min(path.find('/', at), path.size());
      std::string name = path.substr(at, end - at);
      at = end + 1;
      if (name.empty())
        continue;
      auto it = node->names.find(name);
      node = it == node->names.end() ? nullptr : it->second;
    }
    return node;
  }
  std::pair<std::shared_ptr<Node>, std::string> place(const std::string &path) {
    size_t slash = path.rfind('/');
    return {find(path.substr(0, slash)), path.substr(slash + 1)};
  }

  static constexpr int never = 1 << 30;
  std::mutex mutex;
  std::condition_variable changed;
  std::shared_ptr<Node> root = std::make_shared<Node>();
  std::vector<std::shared_ptr<Node>> opened;
  int count = 0, crash = never, firstFailure = never, lastFailure = 0, failure = 0;
  bool dead = false, held = false;
};

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_MEMORYDISK_H
