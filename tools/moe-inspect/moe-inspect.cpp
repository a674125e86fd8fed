//===- moe-inspect.cpp - see what a plan will do --------------------------===//
//   moe-inspect PLAN [--json | --html=FILE | --dot=FILE | --ranks=0-7 | --diff=OTHER]
// Text or JSON on stdout, or a page: mesh, memory, communication, queues, the shard of every
// weight; the flow of data; where each rank stands and what it holds; or what another plan has
// otherwise.
//===----------------------------------------------------------------------===//
#include "moira/rt/OutputFile.h"
#include "moira/rt/PlanSummary.h"
#include "moira/rt/Suggest.h"

#include <CLI/CLI.hpp>

#include <charconv>
#include <cstdio>
#include <iostream>

using namespace moira::rt;

namespace {

constexpr const char *kUsage =
    "moe-inspect PLAN [--json | --html=FILE | --dot=FILE | --ranks=0-7 | --diff=OTHER]";

/// Prints every problem and returns the exit code.
int fail(const Status &status) {
  std::cerr << status.str();
  return status.exitCode();
}

int leaveWith(const Status &status) { return status.ok() ? 0 : fail(status); }

/// "3" or "0-7" within the plan's ranks.
Status parseRanks(const std::string &text, uint64_t ranks, uint64_t &first, uint64_t &last) {
  auto number = [](std::string_view part, uint64_t &value) {
    auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    return error == std::errc() && end == part.data() + part.size();
  };
  size_t dash = text.find('-');
  std::string_view from = std::string_view(text).substr(0, dash);
  std::string_view to = dash == std::string::npos ? from : std::string_view(text).substr(dash + 1);
  if (!number(from, first) || !number(to, last) || first > last || last >= ranks)
    return {ErrorId::BadUsage,
            "--ranks=" + text + " is not a rank or range within 0-" + std::to_string(ranks - 1)};
  return {};
}

/// One line a rank (coordinates), then the part of every weight that it holds.
void printRanks(const PlanSummary &summary, uint64_t first, uint64_t last) {
  for (uint64_t rank = first; rank <= last; ++rank) {
    std::vector<std::pair<std::string, uint64_t>> coordinates(summary.mesh.size());
    uint64_t rest = rank;
    for (size_t i = summary.mesh.size(); i-- > 0; rest /= summary.mesh[i].second)
      coordinates[i] = {summary.mesh[i].first, rest % summary.mesh[i].second};
    std::printf("rank %llu", (unsigned long long)rank);
    for (const auto &[axis, index] : coordinates)
      std::printf("  %s=%llu", axis.c_str(), (unsigned long long)index);
    std::printf("\n");
    if (!summary.main())
      continue;
    for (const ShardSummary &shard : summary.main()->shards) {
      std::string box;
      for (size_t d = 0; d < shard.shape.size(); ++d) {
        uint64_t index = 0;
        for (const std::string &axis : shard.axes[d])
          for (size_t i = 0; i < coordinates.size(); ++i)
            if (coordinates[i].first == axis)
              index = index * summary.mesh[i].second + coordinates[i].second;
        int64_t begin = std::min<int64_t>(index * shard.localShape[d], shard.shape[d]);
        int64_t end = std::min<int64_t>(begin + shard.localShape[d], shard.shape[d]);
        box += (box.empty() ? "" : ", ") + std::to_string(begin) + ":" + std::to_string(end);
      }
      std::printf("  %s[%s]\n", shard.name.c_str(), box.c_str());
    }
  }
}

} // namespace

int main(int argc, char **argv) {
  openStandardStreams();
  CLI::App app(
      "Shows what a plan will do: mesh, memory, communication, queues, the shard of every weight.",
      "moe-inspect");
  app.footer(
      "Exit codes: 0 success, 1 usage, 2 invalid input, 4 internal error, 5 an I/O failure.");
  std::string path, ranks, html, dot, other;
  bool json = false, version = false;
  app.allow_extras();
  app.add_option("PLAN", path, "a .moeplan file");
  app.add_flag("--json", json, "everything as JSON");
  app.add_option("--html", html, "write everything as a page for browsers to this file");
  app.add_option("--dot", dot, "write the flow of data, for Graphviz, to this file");
  app.add_option("--ranks", ranks, "coordinates and weights of a rank or a range, e.g. 0-7");
  app.add_option("--diff", other, "what this other .moeplan file has otherwise");
  app.add_flag("--version", version, "print the version");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError &error) {
    if (error.get_exit_code() == 0)
      return app.exit(error);
    return fail({ErrorId::UnknownFlag, std::string(error.what()) + "; " + kUsage});
  }
  if (version) {
    std::cout << "moe-inspect " MOIRA_VERSION "\n";
    return leaveWith(finishStdout());
  }
  Status problems;
  for (const std::string &word : app.remaining()) {
    if (!word.starts_with("-")) {
      problems.add(ErrorId::UnknownFlag, "unexpected argument '" + word +
                                             "'; one plan is shown, and --diff=OTHER compares it");
      continue;
    }
    std::string near =
        nearestWord(word.substr(0, word.find('=')),
                    {"--json", "--html", "--dot", "--ranks", "--diff", "--help", "--version"});
    problems.add(ErrorId::UnknownFlag,
                 "unknown option '" + word + "'" +
                     (near.empty() ? "; see moe-inspect --help" : "; did you mean " + near + "?"));
  }
  if (path.empty())
    problems.add(ErrorId::BadUsage, std::string("no plan given; ") + kUsage);
  if (json + !html.empty() + !dot.empty() + !ranks.empty() + !other.empty() > 1)
    problems.add(ErrorId::BadUsage, "one of --json, --html, --dot, --ranks and --diff at a time");
  problems.append(checkReplaced({{"--html=" + html, html}, {"--dot=" + dot, dot}},
                                {{"the plan " + path, path}}));
  if (!problems)
    return fail(problems);
  Expected<PlanFile> file = PlanFile::open(path);
  if (!file)
    return fail(file.status());
  if (!dot.empty())
    return leaveWith(writeOutputFile(dot, graphDot(*file)));
  PlanSummary summary = summarize(*file);
  if (!html.empty())
    return leaveWith(writeOutputFile(html, summaryHtml(summary)));
  if (!other.empty()) {
    Expected<PlanFile> second = PlanFile::open(other);
    if (!second)
      return fail(second.status());
    std::string text = diffText(summary, summarize(*second));
    bool same = file->checksum() == second->checksum() && file->fileSize() == second->fileSize();
    if (text.empty()) // a learning rate, say, is in no summary
      text = same ? "no difference\n" : "no difference of what is shown; the files differ\n";
    std::cout << text;
    return leaveWith(finishStdout());
  }
  if (!ranks.empty()) {
    uint64_t first = 0, last = 0;
    if (Status status = parseRanks(ranks, summary.ranks, first, last); !status)
      return fail(status);
    printRanks(summary, first, last);
    return leaveWith(finishStdout());
  }
  std::cout << (json ? summaryJson(summary) : summaryText(summary));
  return leaveWith(finishStdout());
}
