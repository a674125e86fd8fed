// Writes the fuzzer's hand-made seeds: plan_seeds DIR.
#include "../Unit/PlanCallExamples.h"

#include <cstdio>
#include <fstream>

using namespace moira::rt;
using namespace moira::rt::test;

int main(int argc, char **argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: plan_seeds DIR\n");
    return 1;
  }
  auto write = [&](const char *name, const PlanSpec &plan) {
    std::vector<uint8_t> bytes = plan.build();
    std::ofstream(std::string(argv[1]) + "/" + name, std::ios::binary)
        .write(reinterpret_cast<const char *>(bytes.data()), bytes.size());
  };
  write("seed-tiny", tinyPlan());
  write("seed-calls", callsPlan());
  write("seed-experts", expertPlan());
  write("seed-cache", cachePlan());
  PlanSpec forward = expertPlan();
  forward.programs.pop_back();
  write("seed-forward", forward);
  PlanSpec reference = expertPlan();
  reference.programs.erase(reference.programs.begin());
  reference.kernels.clear();
  reference.sections.clear();
  write("seed-reference", reference);
  return 0;
}
