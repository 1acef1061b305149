//! Cycles of a graph: who waits for whom in a circle.

/// The strongly connected components that are cycles: of more than one node, or of one that points at itself. Nodes
/// are numbers below `nodes`; edges from or to others are ignored. Tarjan's algorithm without recursion: a target may
/// hold chains of a million tasks. Components and their members are in ascending order.
pub(crate) fn cycles(nodes: usize, mut edges: Vec<(u32, u32)>) -> Vec<Vec<usize>> {
    const UNSEEN: usize = usize::MAX;
    #[derive(Clone, Copy)]
    struct Node {
        index: usize,
        low: usize,
        on_stack: bool,
        /// Where its edges begin.
        edges: usize,
    }
    edges.sort_unstable();
    edges.dedup();
    let index = |n: u32| usize::try_from(n).unwrap_or(UNSEEN);
    let mut count = nodes;
    let mut nodes = Vec::with_capacity(count);
    let mut start = 0_usize;
    while nodes.len() < count {
        nodes.push(Node {
            index: UNSEEN,
            low: UNSEEN,
            on_stack: false,
            edges: start,
        });
        let from = nodes.len().saturating_sub(1);
        while edges.get(start).is_some_and(|edge| index(edge.0) <= from) {
            start = start.saturating_add(1);
        }
    }
    let edge = |node: usize, first: usize, followed: usize| {
        let &(from, to) = edges.get(first.checked_add(followed)?)?;
        (index(from) == node).then(|| index(to))
    };
    let mut counter = 0_usize;
    let mut stack = Vec::new();
    let mut found = Vec::new();
    count = nodes.len();
    for root in 0..count {
        if nodes.get(root).is_none_or(|node| node.index != UNSEEN) {
            continue;
        }
        // Each entry: a node and how many of its edges were followed.
        let mut path: Vec<(usize, usize)> = vec![(root, 0)];
        while let Some((at, followed)) = path.last_mut() {
            let at = *at;
            if *followed == 0
                && let Some(node) = nodes.get_mut(at)
                && node.index == UNSEEN
            {
                *node = Node {
                    index: counter,
                    low: counter,
                    on_stack: true,
                    ..*node
                };
                counter = counter.saturating_add(1);
                stack.push(at);
            }
            let first = nodes.get(at).map_or(UNSEEN, |node| node.edges);
            if let Some(next) = edge(at, first, *followed) {
                *followed = followed.saturating_add(1);
                match nodes.get(next).copied() {
                    Some(node) if node.index == UNSEEN => path.push((next, 0)),
                    Some(node) if node.on_stack => {
                        if let Some(this) = nodes.get_mut(at) {
                            this.low = this.low.min(node.index);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            path.pop();
            let Some(done) = nodes.get(at).copied() else {
                continue;
            };
            if let Some(parent) = path.last().and_then(|(parent, _)| nodes.get_mut(*parent)) {
                parent.low = parent.low.min(done.low);
            }
            if done.low != done.index {
                continue;
            }
            let mut component = Vec::new();
            while let Some(member) = stack.pop() {
                if let Some(node) = nodes.get_mut(member) {
                    node.on_stack = false;
                }
                component.push(member);
                if member == at {
                    break;
                }
            }
            let own = u32::try_from(at).ok().map(|at| (at, at));
            if component.len() > 1 || own.is_some_and(|own| edges.binary_search(&own).is_ok()) {
                component.sort_unstable();
                found.push(component);
            }
        }
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    fn cycles(edges: &[Vec<usize>]) -> Vec<Vec<usize>> {
        let pairs = edges.iter().enumerate().flat_map(|(from, tos)| {
            tos.iter()
                .map(move |to| (u32::try_from(from).unwrap(), u32::try_from(*to).unwrap()))
        });
        super::cycles(edges.len(), pairs.collect())
    }

    #[test]
    fn circles_and_loops_are_found_and_nothing_else() {
        assert!(cycles(&[]).is_empty());
        assert!(cycles(&[vec![1], vec![2], vec![]]).is_empty());
        assert_eq!(cycles(&[vec![1], vec![0]]), [[0, 1]]);
        assert_eq!(cycles(&[vec![0], vec![0]]), [[0]]);
        assert_eq!(
            cycles(&[vec![1, 9], vec![2], vec![1], vec![4], vec![3, 0]]),
            [[1, 2], [3, 4]]
        );
        // Two circles that share a node are one component.
        assert_eq!(cycles(&[vec![1, 2], vec![0], vec![0]]), [[0, 1, 2]]);
    }

    #[test]
    fn a_chain_of_a_million_needs_no_stack() {
        let n = 1_000_000;
        let mut edges: Vec<Vec<usize>> = (1..=n).map(|next| vec![next]).collect();
        assert!(cycles(&edges).is_empty());
        edges[n - 1] = vec![0];
        assert_eq!(cycles(&edges)[0].len(), n);
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_reachability(edges in proptest::collection::vec(proptest::collection::vec(0_usize..9, 0..4), 0..9)) {
            let n = edges.len();
            let mut reach = vec![vec![false; n]; n];
            for (from, tos) in edges.iter().enumerate() {
                for &to in tos.iter().filter(|to| **to < n) {
                    reach[from][to] = true;
                }
            }
            for via in 0..n {
                for from in 0..n {
                    for to in 0..n {
                        reach[from][to] |= reach[from][via] && reach[via][to];
                    }
                }
            }
            let mut expected: Vec<Vec<usize>> = (0..n)
                .filter(|a| reach[*a][*a])
                .map(|a| (0..n).filter(|b| reach[a][*b] && reach[*b][a]).collect())
                .collect();
            expected.dedup();
            expected.sort();
            expected.dedup();
            proptest::prop_assert_eq!(cycles(&edges), expected);
        }
    }
}
