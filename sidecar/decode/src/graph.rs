//! Cycles of a graph: who waits for whom in a circle.

/// The strongly connected components that are cycles: of more than one node, or of one that points at itself. Nodes
/// are numbers below `edges.len()`; edges to others are ignored. Tarjan's algorithm without recursion: a target may
/// hold chains of a million tasks. Components and their members are in ascending order.
pub(crate) fn cycles(edges: &[Vec<usize>]) -> Vec<Vec<usize>> {
    const UNSEEN: usize = usize::MAX;
    #[derive(Clone)]
    struct Node {
        index: usize,
        low: usize,
        on_stack: bool,
    }
    let mut nodes = vec![
        Node {
            index: UNSEEN,
            low: UNSEEN,
            on_stack: false
        };
        edges.len()
    ];
    let mut counter = 0_usize;
    let mut stack = Vec::new();
    let mut found = Vec::new();
    for root in 0..edges.len() {
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
                };
                counter = counter.saturating_add(1);
                stack.push(at);
            }
            if let Some(&next) = edges.get(at).and_then(|edges| edges.get(*followed)) {
                *followed = followed.saturating_add(1);
                match nodes.get(next).cloned() {
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
            let Some(done) = nodes.get(at).cloned() else {
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
            if component.len() > 1 || edges.get(at).is_some_and(|edges| edges.contains(&at)) {
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
    use super::cycles;

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
