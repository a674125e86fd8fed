//===- PlanHostile.h - tables of plans to be refused ------------*- C++ -*-===//
// Cases that each change one thing of a valid plan with a right checksum, and how they are checked.
// The cases stand in the tests.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_PLANHOSTILE_H
#define MOIRA_TEST_UNIT_PLANHOSTILE_H

#include "PlanTestBuilder.h"

#include <functional>
#include <gtest/gtest.h>
#include <stdexcept>

namespace moira::rt::test {

struct HostileCase {
  const char *name;
  std::function<void(PlanSpec &)> change;
  ErrorId id;
  const char *text; // part of the message
};

inline InstrSpec &instr(PlanSpec &p, size_t index) { return p.forward().instrs.at(index); }
inline ViewSpec &viewOf(PlanSpec &p, uint32_t index) { return p.forward().views.at(index); }
inline ParamSpec &param(InstrSpec &instr, std::string_view name) {
  for (ParamSpec &p : instr.params)
    if (p.name == name)
      return p;
  throw std::logic_error("no such parameter");
}
inline void erase(PlanSpec &p, size_t index) {
  p.forward().instrs.erase(p.forward().instrs.begin() + index);
}

/// Each is refused with its id and a message that has its text.
inline void expectRefused(const std::vector<HostileCase> &cases,
                          const PlanSpec &valid = expertPlan()) {
  for (const HostileCase &c : cases) {
    PlanSpec plan = valid;
    c.change(plan);
    std::vector<uint8_t> bytes = plan.build();
    Expected<PlanFile> file = PlanFile::fromBytes(bytes);
    ASSERT_FALSE(file) << c.name << ": was accepted";
    bool found = false;
    for (const Diagnostic &d : file.status().diagnostics())
      found |= d.id == c.id && d.message.find(c.text) != std::string::npos;
    EXPECT_TRUE(found) << c.name << ": wanted MOE-0" << static_cast<int>(c.id) << " with \""
                       << c.text << "\", got\n"
                       << file.status().str();
  }
}

} // namespace moira::rt::test

#endif // MOIRA_TEST_UNIT_PLANHOSTILE_H
