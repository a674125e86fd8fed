// --dist-attach-mesh puts the mesh into the module, leaves out axes of size 1, and lists everything wrong with a mesh at once.
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2,ep=4" | FileCheck %s
// RUN: moe-opt %s --dist-attach-mesh="mesh=ep=4,dp=1" | FileCheck %s --check-prefix=ONE-AXIS
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=1" | FileCheck %s --check-prefix=NONE
// RUN: moe-opt %s --dist-attach-mesh | FileCheck %s --check-prefix=NONE
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2" | moe-opt --dist-attach-mesh="mesh=dp=2" | FileCheck %s --check-prefix=TWICE
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2" | not moe-opt --dist-attach-mesh="mesh=ep=2" 2>&1 | FileCheck %s --check-prefix=OTHER
// RUN: not moe-opt %s --dist-attach-mesh="mesh=eq=2,dp=2,dp=3,tp=0,x,ep=99999999" 2>&1 | FileCheck %s --check-prefix=BAD
// RUN: not moe-opt %s --dist-attach-mesh="mesh=dp=1048576,ep=2" 2>&1 | FileCheck %s --check-prefix=MANY

// CHECK: dist.mesh @mesh ["dp", "ep"] = [2, 4]
// ONE-AXIS: dist.mesh @mesh ["ep"] = [4]
// NONE-NOT: dist.mesh
// TWICE-COUNT-1: dist.mesh
// OTHER: MOE-0103: --mesh=ep=2, but the module has the mesh dp=2 already; leave out --mesh
// BAD: MOE-0103: --mesh={{.*}}: unknown axis 'eq'; did you mean ep? axes are dp (batch), ep (experts
// BAD: MOE-0103: {{.*}}: axis dp stands twice
// BAD: MOE-0103: {{.*}}: axis tp has size 0; sizes are 1 to 2^20
// BAD: MOE-0103: {{.*}}: 'x' is not axis=size
// BAD: MOE-0103: {{.*}}: axis ep has size 99999999
// MANY: MOE-0103: {{.*}}: more than 2^20 ranks
module {
}
