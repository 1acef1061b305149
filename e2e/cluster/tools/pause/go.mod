// What holds a pod's namespaces open.
module sidewinder.dev/e2e/cluster/tools/pause

go 1.26
