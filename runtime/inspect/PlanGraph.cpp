//===- PlanGraph.cpp - the flow of data through a plan's program ----------===//
// moe-inspect --dot: a Graphviz graph. A node is a module of the model (what its instructions
// compute on a rank) or its exchanges of one kind; an edge is what one leaves in memory and the
// other reads. Modules of a layer stand in one frame; of a training step they stand apart by
// forward pass, backward pass and update.
//===----------------------------------------------------------------------===//
#include "moira/rt/CallRegistry.h"
#include "moira/rt/PlanSummary.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

using namespace moira;
using namespace moira::rt;

namespace {

struct Node {
  std::string title;
  bool exchange = false;
  std::map<std::string, unsigned> work; // "linear" -> how often
  uint64_t sent = 0;                    // bytes of operands of exchanges
  std::set<uint32_t> statesRead;        // views of weights and other states
  uint64_t stateBytes = 0;
};

/// "model.layers.0" of "model.layers.0.mlp.experts"; nothing outside of layers.
std::string layerOf(const std::string &path) {
  for (size_t begin = 0; begin < path.size();) {
    size_t end = std::min(path.find('.', begin), path.size());
    if (std::all_of(path.begin() + begin, path.begin() + end,
                    [](unsigned char c) { return std::isdigit(c); }))
      return path.substr(0, end);
    begin = end + 1;
  }
  return "";
}

bool isUpdate(const std::string &call) {
  static const std::set<std::string> calls = {
      "adamw",         "expert_adamw",   "sgd",         "adafactor",  "adafactor_vector",
      "second_moment", "adafactor_norm", "clip_factor", "accumulate", "balance_bias"};
  return calls.contains(call);
}

/// Text within quotes. A backslash would make other words of what follows it.
std::string escaped(const std::string &text) {
  std::string out;
  for (char c : text) {
    if (c == '"' || c == '\\')
      out += '\\';
    out += c;
  }
  return out;
}

std::string quoted(const std::string &text) { return "\"" + escaped(text) + "\""; }

class Graph {
public:
  Graph(const fb::Plan &plan, const fb::Program &program) : plan(plan), program(program) {
    for (const fb::Input *input : *program.inputs()) {
      Node &node = nodeOf("input " + input->name()->str(), input->name()->str(), "");
      writers.push_back({rangeOf(input->view()), indexOf(node)});
    }
    for (const fb::Instr *instr : *program.instrs())
      add(*instr);
    for (const fb::Output *output : *program.outputs()) {
      Node &node = nodeOf("output " + output->name()->str(), output->name()->str(), "");
      read(output->view(), indexOf(node));
    }
  }

  std::string dot(const std::string &title) const {
    std::string text =
        "digraph plan {\n  label=" + quoted(title) +
        ";\n  labelloc=t;\n  newrank=true;\n  node [shape=box, fontname=\"sans-serif\", "
        "fontsize=10];\n  edge [fontname=\"sans-serif\", fontsize=9];\n";
    std::map<std::string, std::vector<size_t>> frames;
    for (size_t i = 0; i < nodes.size(); ++i)
      frames[layers[i]].push_back(i);
    unsigned frame = 0;
    for (const auto &[layer, members] : frames) {
      if (!layer.empty())
        text += format("  subgraph cluster_%u {\n  label=", frame++) + quoted(layer) + ";\n";
      for (size_t i : members)
        text += nodeText(i);
      if (!layer.empty())
        text += "  }\n";
    }
    // What goes back to an earlier module does not pull it down: ranks stay free of cycles.
    for (const auto &[ends, bytes] : edges)
      text +=
          format("  n%zu -> n%zu [label=\"%s\"%s];\n", ends.first, ends.second,
                 bytesText(bytes).c_str(), ends.second < ends.first ? ", constraint=false" : "");
    return text + "}\n";
  }

private:
  /// Memory at the initial bound.
  struct Range {
    uint16_t arena;
    uint64_t begin, end;
  };
  struct Writer {
    Range range;
    size_t node;
  };

  Range rangeOf(uint32_t index) const {
    const fb::View *view = program.views()->Get(index);
    uint64_t bytes = dtypeBytes(view->dtype());
    for (int64_t size : *view->shape())
      bytes *= size;
    if (view->bound_dim() >= 0)
      bytes *= program.bound_initial();
    uint64_t begin = view->offset() + view->offset_per_bound() * program.bound_initial();
    return {view->arena(), begin, begin + bytes};
  }

  bool isState(uint32_t view) const {
    return program.arenas()->Get(program.views()->Get(view)->arena())->role() ==
           fb::ArenaRole::state;
  }

  Node &nodeOf(const std::string &key, const std::string &title, const std::string &layer) {
    auto [it, isNew] = byKey.try_emplace(key, nodes.size());
    if (isNew) {
      nodes.push_back({});
      nodes.back().title = title;
      layers.push_back(layer);
    }
    return nodes[it->second];
  }
  size_t indexOf(const Node &node) const { return size_t(&node - nodes.data()); }

  void add(const fb::Instr &instr) {
    std::string where = instr.location() < plan.locations()->size()
                            ? plan.locations()->Get(instr.location())->str()
                            : "";
    std::string layer = layerOf(where), name;
    bool exchange = instr.kind() == fb::InstrKind::collective;
    switch (instr.kind()) {
    case fb::InstrKind::record:
    case fb::InstrKind::wait:
    case fb::InstrKind::require_bound:
      return;
    case fb::InstrKind::call:
      name = plan.calls()->Get(instr.target())->str();
      break;
    case fb::InstrKind::launch:
      name = plan.kernels()->Get(instr.target())->name()->str();
      break;
    case fb::InstrKind::collective:
      name = fb::EnumNameCollectiveKind(static_cast<fb::CollectiveKind>(instr.target()));
      name += " over " + axesText(plan, instr);
      break;
    default:
      name = fb::EnumNameInstrKind(instr.kind());
    }
    backward |= name.ends_with("_grad");
    std::string phase = isUpdate(name) ? "update" : backward ? "backward" : "";
    if (!phase.empty())
      layer += (layer.empty() ? "" : ", ") + phase;
    std::string key = where + "|" + phase + (exchange ? "|" + name : "");
    size_t node = indexOf(nodeOf(key, exchange || where.empty() ? name : where, layer));
    nodes[node].exchange = exchange;
    ++nodes[node].work[name];
    if (exchange) {
      Range range = rangeOf(instr.inputs()->Get(0));
      nodes[node].sent += range.end - range.begin;
    }
    if (instr.inputs())
      for (uint32_t view : *instr.inputs())
        read(view, node);
    if (instr.outputs())
      for (uint32_t view : *instr.outputs())
        if (!isState(view))
          write(rangeOf(view), node);
  }

  void read(uint32_t view, size_t node) {
    Range range = rangeOf(view);
    if (isState(view)) {
      if (nodes[node].statesRead.insert(view).second)
        nodes[node].stateBytes += range.end - range.begin;
      return;
    }
    std::set<size_t> from;
    for (const Writer &writer : writers)
      if (writer.range.arena == range.arena && writer.range.begin < range.end &&
          range.begin < writer.range.end)
        from.insert(writer.node);
    for (size_t writer : from)
      if (writer != node)
        edges[{writer, node}] += range.end - range.begin;
  }

  /// What lay there is gone; what lay beside it stays.
  void write(Range range, size_t node) {
    std::vector<Writer> kept;
    for (const Writer &writer : writers) {
      const Range &old = writer.range;
      if (old.arena != range.arena || old.end <= range.begin || range.end <= old.begin) {
        kept.push_back(writer);
        continue;
      }
      if (old.begin < range.begin)
        kept.push_back({{old.arena, old.begin, range.begin}, writer.node});
      if (range.end < old.end)
        kept.push_back({{old.arena, range.end, old.end}, writer.node});
    }
    kept.push_back({range, node});
    writers = std::move(kept);
  }

  std::string nodeText(size_t i) const {
    const Node &node = nodes[i];
    std::string label = escaped(node.title);
    if (node.exchange)
      label += format("\\n%u call%s, %s", node.work.begin()->second,
                      node.work.begin()->second == 1 ? "" : "s", bytesText(node.sent).c_str());
    std::string line;
    if (!node.exchange)
      for (const auto &[name, count] : node.work) {
        line += (line.empty() ? "" : ", ") + name +
                (count > 1 ? " × " + std::to_string(count) : std::string());
        if (line.size() > 48) {
          label += "\\n" + escaped(line);
          line.clear();
        }
      }
    if (!line.empty() && line != node.title)
      label += "\\n" + escaped(line);
    if (node.stateBytes)
      label += "\\nreads " + bytesText(node.stateBytes) + " of weights";
    const char *look = node.exchange       ? ", style=\"rounded,filled\", fillcolor=\"#f6d6b0\""
                       : node.stateBytes   ? ", style=filled, fillcolor=\"#dbe9f6\""
                       : node.work.empty() ? ", shape=ellipse"
                                           : "";
    return format("  n%zu [label=\"%s\"%s];\n", i, label.c_str(), look);
  }

  const fb::Plan &plan;
  const fb::Program &program;
  std::vector<Node> nodes;
  std::vector<std::string> layers; // of each node
  std::map<std::string, size_t> byKey;
  std::vector<Writer> writers;
  bool backward = false; // instructions are those of the backward pass by now
  std::map<std::pair<size_t, size_t>, uint64_t> edges;
};

} // namespace

std::string moira::rt::graphDot(const PlanFile &file) {
  const fb::Plan &plan = file.plan();
  std::string mesh;
  for (const fb::Axis *axis : *plan.axes())
    mesh += (mesh.empty() ? "" : ",") + axis->name()->str() + "=" + std::to_string(axis->size());
  for (const fb::Program *program : *plan.programs())
    if (!program->reference())
      return Graph(plan, *program)
          .dot(program->name()->str() + ": one rank of " + (mesh.empty() ? "one" : mesh) +
               ", bytes of a step");
  return "digraph plan {}\n";
}
