//===- SummaryHtml.cpp - a plan summary as a page -------------------------===//
// moe-inspect --html: one file without scripts and without anything from elsewhere, so that it can
// be sent to somebody and looks the same in ten years. Numbers come from PlanSummary.cpp only.
//===----------------------------------------------------------------------===//
#include "SummaryWords.h"

#include <algorithm>

using namespace moira::rt;

namespace {

constexpr const char *kStyle = R"css(
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 14px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .15em .7em; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .95em; } .soft { opacity: .7; }
.bar { display: flex; height: 1.6em; border-radius: 4px; overflow: hidden; background: var(--soft); }
.bar div { min-width: 1px; } .key span { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin: 0 .35em 0 1em; vertical-align: -.1em; }
.weights { background: #4878a8; } .optimizer { background: #e49444; } .caches { background: #85b6b2; }
.activations { background: #6a9f58; } .ragged { background: #d1615d; }
.mesh { display: flex; flex-wrap: wrap; gap: .4em; } .rank { border: 1px solid var(--line); border-radius: 5px; padding: .3em .6em; }
.rank b { display: block; } svg rect { fill: none; stroke: currentColor; stroke-opacity: .45; } svg rect.own { fill: #4878a8; }
details { margin: .6em 0; } summary { cursor: pointer; }
)css";

/// Ranks that the picture of the mesh shows.
constexpr uint64_t kMostRanks = 64;
/// Parts that the picture of a shard shows in one direction.
constexpr uint64_t kMostParts = 16;

std::string escaped(const std::string &text) {
  std::string out;
  for (char c : text)
    switch (c) {
    case '&':
      out += "&amp;";
      break;
    case '<':
      out += "&lt;";
      break;
    case '>':
      out += "&gt;";
      break;
    case '"':
      out += "&quot;";
      break;
    default:
      out += c;
    }
  return out;
}

/// Rows of cells; numbers stand on the right.
class Table {
public:
  explicit Table(std::vector<std::string> head, size_t firstNumber = ~size_t(0),
                 size_t lastNumber = ~size_t(0))
      : first(firstNumber), last(lastNumber) {
    text = "<table>\n" + row(head, "th");
  }
  void add(const std::vector<std::string> &cells) { text += row(cells, "td"); }
  std::string str() const { return text + "</table>\n"; }

private:
  std::string row(const std::vector<std::string> &cells, const char *tag) const {
    std::string line = "<tr>";
    for (size_t i = 0; i < cells.size(); ++i)
      line += format("<%s%s>", tag, i >= first && i <= last ? " class=n" : "") + cells[i] +
              format("</%s>", tag);
    return line + "</tr>\n";
  }
  std::string text;
  size_t first, last;
};

std::string describePlan(const PlanSummary &s) {
  std::string text = "<h1>" + escaped(s.modelClass) + "</h1>\n<p class=soft>";
  text += "task " + escaped(s.task) + ", " + s.dtype;
  if (s.batch) // as in the report
    text += format(", batch %lld × sequence %lld", static_cast<long long>(s.batch),
                   static_cast<long long>(s.seq));
  text += ", target " + escaped(s.target);
  if (s.parameters)
    text += "; " + countText(s.parameters) + " parameters, " + countText(s.activeParameters) +
            " active for a token";
  return text + "; " + bytesText(s.fileBytes) + " plan by " + escaped(s.producer) + "</p>\n";
}

std::string describeMesh(const PlanSummary &s) {
  std::string text = "<h2>Mesh: " + escaped(meshText(s)) + "</h2>\n<div class=mesh>\n";
  for (uint64_t rank = 0; rank < std::min(s.ranks, kMostRanks); ++rank) {
    std::string place;
    uint64_t rest = rank;
    for (size_t i = s.mesh.size(); i-- > 0; rest /= s.mesh[i].second)
      place = s.mesh[i].first + "=" + std::to_string(rest % s.mesh[i].second) +
              (place.empty() ? "" : " ") + place;
    text += format("<div class=rank><b>rank %llu</b>", (unsigned long long)rank) + escaped(place) +
            "</div>\n";
  }
  text += "</div>\n";
  if (s.ranks > kMostRanks)
    text += format("<p class=soft>and %llu more</p>\n", (unsigned long long)(s.ranks - kMostRanks));
  return text;
}

std::string describeMemory(const ProgramSummary &p) {
  struct Part {
    std::string look, name;
    uint64_t bytes;
    std::string note;
  };
  std::vector<Part> parts;
  for (const StateClass &c : p.stateClasses)
    if (uint64_t bytes = c.bytes - c.hostBytes)
      parts.push_back({c.role, c.role, bytes,
                       p.ranks > 1 ? format("all ranks hold %.2f copies",
                                            double(bytes) * p.ranks / c.wholeBytes)
                                   : ""});
  parts.push_back({"activations", "activations", bytesOf(p, "activations"), ""});
  if (uint64_t exchange = bytesOf(p, "ragged"); exchange || p.boundMax)
    parts.push_back(
        {"ragged", "expert exchange", exchange,
         p.boundMax ? format("%llu rows a slot at first, %llu at most",
                             (unsigned long long)p.boundInitial, (unsigned long long)p.boundMax)
                    : ""});
  std::string text = "<h2>Memory of a rank: " + bytesText(p.totalBytes) + "</h2>\n<div class=bar>";
  for (const Part &part : parts)
    if (part.bytes && p.totalBytes)
      text += format("<div class=%s style=\"width:%.2f%%\" title=\"%s %s\"></div>",
                     part.look.c_str(), 100.0 * part.bytes / p.totalBytes, part.name.c_str(),
                     bytesText(part.bytes).c_str());
  text += "</div>\n";
  Table table({"", "bytes", "", ""}, 1, 2);
  for (const Part &part : parts)
    table.add(
        {format("<span class=key><span class=%s></span></span>", part.look.c_str()) + part.name,
         bytesText(part.bytes),
         p.totalBytes ? format("%.1f %%", 100.0 * part.bytes / p.totalBytes) : "", part.note});
  text += table.str();
  if (p.hostBytes) {
    text += "<p>On its host " + bytesText(p.hostBytes);
    for (const StateClass &c : p.stateClasses)
      if (c.hostBytes)
        text += ", " + c.role + " " + bytesText(c.hostBytes);
    text += "; a run moves " + bytesText(p.bytesToHost) + " there and " +
            bytesText(p.bytesToDevice) + " back.</p>\n";
  }
  if (!p.peakInstruction.empty())
    text += "<p>Most live values (" + bytesText(p.peakLiveBytes) + ") at <code>" +
            escaped(p.peakInstruction) + "</code>" +
            (p.peakLocation.empty() ? "" : " of <code>" + escaped(p.peakLocation) + "</code>") +
            (p.keptBytes ? "; kept for the backward pass: " + bytesText(p.keptBytes) : "") +
            ".</p>\n";
  return text;
}

std::string describeCommunication(const ProgramSummary &p) {
  if (p.collectives.empty())
    return "<h2>Communication: none</h2>\n";
  std::string text = "<h2>Communication: what a rank sends in one step</h2>\n";
  auto rowsOf = [](const std::vector<CollectiveSummary> &rows, bool layers) {
    std::vector<std::string> head = {"axes", "kind"};
    if (layers)
      head.push_back("layer");
    for (const char *word : {"calls", "payload", "padding"})
      head.push_back(word);
    Table table(head, 2, 5);
    for (const CollectiveSummary &c : rows) {
      std::vector<std::string> cells = {escaped(c.axes), c.kind};
      if (layers)
        cells.push_back(c.layer < 0 ? "–" : std::to_string(c.layer));
      cells.push_back(std::to_string(c.count));
      cells.push_back(bytesText(c.payload));
      cells.push_back(bytesText(c.padding));
      table.add(cells);
    }
    return table.str();
  };
  return text + rowsOf(totalCollectives(p), false) + "<details><summary>by layer</summary>\n" +
         rowsOf(p.collectives, true) + "</details>\n";
}

/// A weight as rows (its first cut dimension) and columns (the next one), rank 0's part filled.
std::string picture(const ShardSummary &s, const PlanSummary &plan) {
  std::vector<uint64_t> cuts;
  for (const std::vector<std::string> &axes : s.axes) {
    uint64_t parts = 1;
    for (const std::string &name : axes)
      for (const auto &[axis, size] : plan.mesh)
        parts *= axis == name ? size : 1;
    if (parts > 1)
      cuts.push_back(std::min(parts, kMostParts));
  }
  cuts.resize(2, 1);
  double width = 64.0 / cuts[1], height = 16.0 / cuts[0];
  std::string text = "<svg width=66 height=18 viewBox=\"-1 -1 66 18\">";
  for (uint64_t row = 0; row < cuts[0]; ++row)
    for (uint64_t column = 0; column < cuts[1]; ++column)
      text += format("<rect x=%.2f y=%.2f width=%.2f height=%.2f%s />", column * width,
                     row * height, width, height, row + column == 0 ? " class=own" : "");
  return text + "</svg>";
}

std::string describeStates(const ProgramSummary &p, const PlanSummary &plan) {
  std::string text;
  for (const StateClass &c : p.stateClasses) {
    Table table({"", "name", "type", "whole", "on a rank", "cut over", "bytes"}, 6, 6);
    for (const ShardSummary &s : p.shards)
      if (s.role == c.role)
        table.add({picture(s, plan), "<code>" + escaped(s.name) + "</code>", s.dtype,
                   shapeText(s.shape), shapeText(s.localShape), escaped(shardingText(s)),
                   bytesText(s.localBytes)});
    text += format("<details%s><summary>%s: %s a rank</summary>\n",
                   c.role == "weights" ? " open" : "", c.role.c_str(), bytesText(c.bytes).c_str()) +
            table.str() + "</details>\n";
  }
  return text.empty() ? "" : "<h2>States, and rank 0's part of them</h2>\n" + text;
}

std::string describeWork(const ProgramSummary &p) {
  Table queues({"queue", "instructions", "records", "waits"}, 1, 3);
  for (const QueueSummary &q : p.queues)
    queues.add({escaped(q.name), std::to_string(q.instructions), std::to_string(q.records),
                std::to_string(q.waits)});
  Table counts({"instruction", "how often"}, 1, 1);
  for (const auto &[name, count] : p.instructionCounts)
    counts.add({"<code>" + escaped(name) + "</code>", std::to_string(count)});
  return "<h2>Instructions</h2>\n" + queues.str() + "<details><summary>by name</summary>\n" +
         counts.str() + "</details>\n";
}

} // namespace

std::string moira::rt::summaryHtml(const PlanSummary &summary) {
  std::string title = summary.modelClass + " on " + meshText(summary);
  std::string text = "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<meta name=viewport "
                     "content=\"width=device-width\">\n<title>" +
                     escaped(title) + "</title>\n<style>" + kStyle + "</style>\n" +
                     describePlan(summary) + describeMesh(summary);
  size_t meshPrograms = std::count_if(summary.programs.begin(), summary.programs.end(),
                                      [](const ProgramSummary &p) { return !p.reference; });
  for (const ProgramSummary &program : summary.programs) {
    if (program.reference && meshPrograms > 0)
      continue;
    if (meshPrograms > 1)
      text += "<hr>\n<h1>program " + escaped(program.name) + "</h1>\n";
    text += describeMemory(program) + describeCommunication(program) +
            describeStates(program, summary) + describeWork(program);
  }
  return text + "</html>\n";
}
