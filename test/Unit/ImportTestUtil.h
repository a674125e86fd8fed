//===- ImportTestUtil.h - what the importer's unit tests share --*- C++ -*-===//
#ifndef MOIRA_TEST_UNIT_IMPORTTESTUTIL_H
#define MOIRA_TEST_UNIT_IMPORTTESTUTIL_H

#include "moira/rt/Status.h"
#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace moira::test {

/// The problems are of these ids, in any order and number, and together say all of `words`.
inline void expectProblems(const rt::Status &status, std::vector<rt::ErrorId> ids,
                           const std::vector<std::string> &words) {
  for (const rt::Diagnostic &d : status.diagnostics())
    EXPECT_NE(std::find(ids.begin(), ids.end(), d.id), ids.end()) << d.message;
  for (rt::ErrorId id : ids) {
    bool found = false;
    for (const rt::Diagnostic &d : status.diagnostics())
      found |= d.id == id;
    EXPECT_TRUE(found) << "no MOE-" << static_cast<int>(id) << " in:\n" << status.str();
  }
  for (const std::string &word : words)
    EXPECT_NE(status.str(1000).find(word), std::string::npos) << "'" << word << "' is not in:\n"
                                                              << status.str();
}

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_IMPORTTESTUTIL_H
