//===- Vectors.h - functions compiled for several vector widths -*- C++ -*-===//
// MOIRA_VECTORS before a function that is not a template: loops in it are vectorised for this
// machine's best instruction set, which is chosen when the program starts. Functions that are
// called in it must be inlined to be part of that. Results may differ between machines, by the
// rounding of fused operations, but not from run to run.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_VECTORS_H
#define MOIRA_RT_HOST_VECTORS_H

#if defined(__x86_64__)
#define MOIRA_VECTORS [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]
#else
#define MOIRA_VECTORS
#endif

#endif // MOIRA_RT_HOST_VECTORS_H
