//===- SummaryDiff.cpp - two plan summaries side by side ------------------===//
// moe-inspect A --diff=B. Only what differs is said, so two plans of one model on two meshes read
// as what the mesh changes.
//===----------------------------------------------------------------------===//
#include "SummaryWords.h"

#include <algorithm>
#include <map>

using namespace moira::rt;

namespace {

/// Both numbers as words; in full where the words are the same and the numbers are not.
std::pair<std::string, std::string> bytesTexts(uint64_t a, uint64_t b) {
  std::string first = bytesText(a), second = bytesText(b);
  if (a == b || first != second)
    return {first, second};
  return {std::to_string(a) + " B", std::to_string(b) + " B"};
}

/// Lines "  name   old -> new", aligned, of one topic; nothing where all are equal.
class Topic {
public:
  explicit Topic(std::string title) : title(std::move(title)) {}

  void add(const std::string &name, const std::string &before, const std::string &after,
           const std::string &note = "") {
    if (before != after)
      rows.push_back({name, before, after, note});
  }
  void addBytes(const std::string &name, uint64_t before, uint64_t after) {
    std::string change;
    if (before && after)
      change = format("%+.1f %%", 100.0 * (double(after) - double(before)) / double(before));
    auto [first, second] = bytesTexts(before, after);
    if (before != after)
      rows.push_back({name, first, second, change});
  }

  std::string text() const {
    if (rows.empty())
      return "";
    size_t name = 0, before = 0, after = 0;
    for (const Row &row : rows) {
      name = std::max(name, row.name.size());
      before = std::max(before, row.before.size());
      after = std::max(after, row.after.size());
    }
    std::string text = title + "\n";
    for (const Row &row : rows) {
      std::string line =
          format("  %-*s  %*s -> %-*s  %s", int(name), row.name.c_str(), int(before),
                 row.before.c_str(), int(after), row.after.c_str(), row.note.c_str());
      text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    }
    return text;
  }

private:
  struct Row {
    std::string name, before, after, note;
  };
  std::string title;
  std::vector<Row> rows;
};

/// fn(name, of a or null, of b or null) for what either holds, a's order first.
template <typename T, typename Name, typename Fn>
void matchByName(const std::vector<T> &a, const std::vector<T> &b, Name nameOf, Fn fn) {
  std::map<std::string, const T *> other;
  for (const T &item : b)
    other.emplace(nameOf(item), &item);
  for (const T &item : a) {
    auto found = other.find(nameOf(item));
    fn(nameOf(item), &item, found == other.end() ? nullptr : found->second);
    if (found != other.end())
      other.erase(found);
  }
  for (const T &item : b)
    if (other.contains(nameOf(item)))
      fn(nameOf(item), static_cast<const T *>(nullptr), &item);
}

Topic describePlan(const PlanSummary &a, const PlanSummary &b) {
  Topic topic("plan");
  auto number = [](auto n) { return std::to_string(n); };
  topic.add("model", a.modelClass, b.modelClass);
  topic.add("task", a.task, b.task);
  topic.add("type", a.dtype, b.dtype);
  topic.add("target", a.target, b.target);
  auto shape = [&](const PlanSummary &s) {
    return s.batch ? number(s.batch) + " x " + number(s.seq) : "not said";
  };
  topic.add("batch x sequence", shape(a), shape(b));
  // In full, as two numbers may have the same words.
  auto count = [&](uint64_t n) { return n ? number(n) : "not said"; };
  topic.add("parameters", count(a.parameters), count(b.parameters));
  topic.add("active for a token", count(a.activeParameters), count(b.activeParameters));
  topic.add("mesh", meshText(a), meshText(b));
  topic.add("ranks", number(a.ranks), number(b.ranks));
  return topic;
}

Topic describeMemory(const ProgramSummary &a, const ProgramSummary &b) {
  Topic topic("memory a rank");
  topic.addBytes("in all", a.totalBytes, b.totalBytes);
  matchByName(
      a.stateClasses, b.stateClasses, [](const StateClass &c) { return c.role; },
      [&](const std::string &name, const StateClass *x, const StateClass *y) {
        topic.addBytes(name, x ? x->bytes - x->hostBytes : 0, y ? y->bytes - y->hostBytes : 0);
        topic.addBytes(name + " on the host", x ? x->hostBytes : 0, y ? y->hostBytes : 0);
      });
  topic.addBytes("on the host in all", a.hostBytes, b.hostBytes);
  topic.addBytes("moved to the host", a.bytesToHost, b.bytesToHost);
  topic.addBytes("moved to the device", a.bytesToDevice, b.bytesToDevice);
  topic.addBytes("activations", bytesOf(a, "activations"), bytesOf(b, "activations"));
  topic.addBytes("expert exchange", bytesOf(a, "ragged"), bytesOf(b, "ragged"));
  topic.addBytes("kept for the backward pass", a.keptBytes, b.keptBytes);
  topic.addBytes("most live values", a.peakLiveBytes, b.peakLiveBytes);
  return topic;
}

Topic describeCommunication(const ProgramSummary &a, const ProgramSummary &b) {
  Topic topic("communication, what a rank sends in one step");
  matchByName(
      totalCollectives(a), totalCollectives(b),
      [](const CollectiveSummary &c) { return c.axes + " " + c.kind; },
      [&](const std::string &name, const CollectiveSummary *x, const CollectiveSummary *y) {
        auto payload = bytesTexts(x ? x->payload : 0, y ? y->payload : 0);
        auto padding = bytesTexts(x ? x->padding : 0, y ? y->padding : 0);
        auto words = [](const CollectiveSummary *c, const std::string &payload,
                        const std::string &padding) {
          return c ? format("%llu call%s, %s", (unsigned long long)c->count,
                            c->count == 1 ? "" : "s", payload.c_str()) +
                         (c->padding ? " + padding " + padding : "")
                   : std::string("none");
        };
        topic.add(name, words(x, payload.first, padding.first),
                  words(y, payload.second, padding.second));
      });
  return topic;
}

/// "model.layers.*.mlp.gate.weight" of a state of a layer.
std::string withoutLayer(const ShardSummary &shard) {
  std::string number = "." + std::to_string(shard.layer) + ".", name = shard.name;
  size_t at = shard.layer < 0 ? std::string::npos : name.find(number);
  return at == std::string::npos ? name : name.replace(at, number.size(), ".*.");
}

/// Layers that change alike are one line.
Topic describeStates(const ProgramSummary &a, const ProgramSummary &b) {
  struct Change {
    std::string name, before, after;
    unsigned layers;
  };
  std::vector<Change> changes;
  auto words = [](const ShardSummary *s) {
    return s ? s->dtype + " " + shapeText(s->localShape) + " " + shardingText(*s)
             : std::string("none");
  };
  matchByName(
      a.shards, b.shards, [](const ShardSummary &s) { return s.name; },
      [&](const std::string &, const ShardSummary *x, const ShardSummary *y) {
        Change change{withoutLayer(x ? *x : *y), words(x), words(y), 1};
        auto same = std::find_if(changes.begin(), changes.end(), [&](const Change &c) {
          return c.name == change.name && c.before == change.before && c.after == change.after;
        });
        if (same != changes.end())
          ++same->layers;
        else
          changes.push_back(std::move(change));
      });
  Topic topic("weights and other states, on a rank");
  for (const Change &change : changes)
    topic.add(change.name, change.before, change.after,
              change.layers > 1 ? format("in %u layers", change.layers) : "");
  return topic;
}

Topic describeInstructions(const ProgramSummary &a, const ProgramSummary &b) {
  Topic topic("instructions");
  using Count = std::pair<std::string, uint64_t>;
  matchByName(
      a.instructionCounts, b.instructionCounts, [](const Count &c) { return c.first; },
      [&](const std::string &name, const Count *x, const Count *y) {
        topic.add(name, std::to_string(x ? x->second : 0), std::to_string(y ? y->second : 0));
      });
  return topic;
}

std::string describeProgram(const ProgramSummary &a, const ProgramSummary &b) {
  std::string text;
  for (const Topic &topic : {describeMemory(a, b), describeCommunication(a, b),
                             describeStates(a, b), describeInstructions(a, b)})
    if (std::string part = topic.text(); !part.empty())
      text += (text.empty() ? "" : "\n") + part;
  return text;
}

} // namespace

std::string moira::rt::diffText(const PlanSummary &a, const PlanSummary &b) {
  std::string text = describePlan(a, b).text();
  auto add = [&](const std::string &part) {
    if (!part.empty())
      text += (text.empty() ? "" : "\n") + part;
  };
  matchByName(
      a.programs, b.programs, [](const ProgramSummary &p) { return p.name; },
      [&](const std::string &name, const ProgramSummary *x, const ProgramSummary *y) {
        if (x && y) {
          std::string part = describeProgram(*x, *y);
          add(part.empty() ? "" : "program " + name + "\n\n" + part);
        } else {
          add("program " + name + ": only in the " + (x ? "first" : "second") + " plan\n");
        }
      });
  return text;
}
