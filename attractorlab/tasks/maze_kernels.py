"""Compiled loops behind mazes: boards are int8 token ids, row by row; distances are in steps."""

import numpy as np
from numpy.typing import NDArray

from attractorlab.tasks.kernels import ATTEMPTS, GOLDEN, Board, Boards, Words, compiled, draw, mix
from attractorlab.tasks.maze import GOAL, PATH, SPACE, START, WALL

MANY = 2  # shortest paths are counted up to here
DRAWS = 16  # pairs of ends tried before all are counted

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@compiled
def _neighbour(site: int, way: int, side: int, step: int) -> int:
    """The site `step` cells away: up, left, right, down; -1 where the board ends."""
    row, column = site // side, site % side
    if way == 0:
        return site - step * side if row >= step else -1
    if way == 1:
        return site - step if column >= step else -1
    if way == 2:
        return site + step if column + step < side else -1
    return site + step * side if row + step < side else -1


@compiled
def _spread(free: Flags, start: int, side: int, distance: Numbers, queue: Numbers) -> int:
    """Fill `distance` with steps from `start` over free sites, -1 where there is no way; the number of sites reached."""
    distance[:] = -1
    distance[start] = 0
    queue[0] = start
    first, last = 0, 1
    while first < last:
        site = queue[first]
        first += 1
        for way in range(4):
            other = _neighbour(site, way, side, 1)
            if other >= 0 and free[other] and distance[other] < 0:
                distance[other] = distance[site] + 1
                queue[last] = other
                last += 1
    return last


@compiled
def path_lengths(free: NDArray[np.bool_], starts: Numbers, goals: Numbers, side: int, lengths: Numbers) -> None:
    """Fill `lengths` with the steps of a shortest way over the free sites of each row, -1 where there is none."""
    distance, queue = np.empty(side * side, np.int64), np.empty(side * side, np.int64)
    for row in range(free.shape[0]):
        _spread(free[row], starts[row], side, distance, queue)
        lengths[row] = distance[goals[row]]


@compiled
def solve_mazes(boards: Boards, side: int, solutions: Boards, counts: Numbers, lengths: Numbers) -> None:
    """Fill `solutions` with the boards and a shortest path marked, `counts` (up to 2) with how many there are, `lengths` with its steps, -1 for none.

    A board has one start and one goal.
    """
    sites = side * side
    free, distance, queue, ways = np.empty(sites, np.bool_), np.empty(sites, np.int64), np.empty(sites, np.int64), np.empty(sites, np.int64)
    for row in range(boards.shape[0]):
        start, goal = 0, 0
        for site in range(sites):
            token = boards[row, site]
            free[site] = token >= SPACE
            solutions[row, site] = SPACE if token == PATH else token
            if token == START:
                start = site
            if token == GOAL:
                goal = site
        # From the goal, so that the walk back below is the path from start to goal that is first in the order of ways.
        reached = _spread(free, goal, side, distance, queue)
        lengths[row] = distance[start]
        counts[row] = 0
        if distance[start] < 0:
            continue
        ways[:] = 0
        ways[goal] = 1
        for number in range(1, reached):
            site = queue[number]
            for way in range(4):
                other = _neighbour(site, way, side, 1)
                if other >= 0 and free[other] and distance[other] == distance[site] - 1:
                    ways[site] = min(MANY, ways[site] + ways[other])
        counts[row] = ways[start]
        site = start
        while distance[site] > 1:
            for way in range(4):
                other = _neighbour(site, way, side, 1)
                if other >= 0 and free[other] and distance[other] == distance[site] - 1:
                    site = other
                    break
            solutions[row, site] = PATH


@compiled
def _grow(board: Board, side: int, cells: int, after: Numbers, stream: Words) -> None:
    """Carve a spanning tree of the cells, every tree being equally likely: loop-erased random walks (Wilson 1996)."""
    board[:] = WALL
    board[side + 1] = SPACE
    for number in range(1, cells * cells):
        first = _site(number, side, cells)
        site = first
        while board[site] == WALL:
            other = -1
            while other < 0:
                way = draw(stream, 4)
                other = _neighbour(site, way, side, 2)
                # With an even side the last line is no line of cells.
                if other >= 0 and (other // side > 2 * cells - 1 or other % side > 2 * cells - 1):
                    other = -1
            after[site] = other
            site = other
        site = first
        while board[site] == WALL:
            other = after[site]
            board[site] = SPACE
            board[(site + other) // 2] = SPACE
            site = other


@compiled
def make_mazes(
    seed: np.uint64, first: int, side: int, least: int, most: int, boards: Boards, solutions: Boards, counts: Numbers, lengths: Numbers
) -> int:
    """Fill the arrays with mazes `first`, `first` + 1, ... of a seed; the number filled.

    The ends are drawn evenly among the ordered pairs of cells that are `least` to `most` steps apart; with `least` 0, at least half as far apart as any two are.
    """
    sites, cells = side * side, (side - 1) // 2
    after, distance, queue = np.empty(sites, np.int64), np.empty(sites, np.int64), np.empty(sites, np.int64)
    free, stream = np.empty(sites, np.bool_), np.empty(1, np.uint64)
    for number in range(boards.shape[0]):
        stream[0] = mix(mix(seed + GOLDEN) ^ np.uint64(first + number))
        board, done = boards[number], False
        for _ in range(ATTEMPTS):
            _grow(board, side, cells, after, stream)
            for site in range(sites):
                free[site] = board[site] == SPACE
            # The site furthest from any is an end of a longest path, and the one furthest from that its other end.
            reached = _spread(free, side + 1, side, distance, queue)
            reached = _spread(free, queue[reached - 1], side, distance, queue)
            longest = distance[queue[reached - 1]]
            low, high = (least, most) if least else (longest // 2, longest)
            # Cells are an even number of steps apart, and every even number up to the longest occurs, along the longest path.
            if low + low % 2 <= min(high, longest):
                _place(board, free, side, cells, low, high, distance, queue, stream)
                done = True
                break
        if not done:
            return number
    solve_mazes(boards, side, solutions, counts, lengths)
    return boards.shape[0]


@compiled
def _place(board: Board, free: Flags, side: int, cells: int, low: int, high: int, distance: Numbers, queue: Numbers, stream: Words) -> None:
    """Draw start and goal evenly among the pairs of cells that are so far apart: try a few pairs, or else count them all."""
    for _ in range(DRAWS):
        start, goal = _site(draw(stream, cells * cells), side, cells), _site(draw(stream, cells * cells), side, cells)
        _spread(free, start, side, distance, queue)
        if start != goal and low <= distance[goal] <= high:
            board[start], board[goal] = START, GOAL
            return
    chosen = -1
    while True:
        pairs = 0
        for one in range(cells * cells):
            start = _site(one, side, cells)
            _spread(free, start, side, distance, queue)
            for two in range(cells * cells):
                goal = _site(two, side, cells)
                if start != goal and low <= distance[goal] <= high:
                    if pairs == chosen:
                        board[start], board[goal] = START, GOAL
                        return
                    pairs += 1
        chosen = draw(stream, pairs)


@compiled
def _site(cell: int, side: int, cells: int) -> int:
    """The site of a cell."""
    return (2 * (cell // cells) + 1) * side + 2 * (cell % cells) + 1


@compiled
def canonical_mazes(boards: Boards, moves: Numbers, best: Boards, prints: Words) -> None:
    """Fill `best` with the smallest image of each board under the moves, and `prints` with a number made of it."""
    for row in range(boards.shape[0]):
        least = 0
        for move in range(1, moves.shape[0]):
            for site in range(moves.shape[1]):
                difference = boards[row, moves[move, site]] - boards[row, moves[least, site]]
                if difference:
                    if difference < 0:
                        least = move
                    break
        word = np.uint64(0)
        for site in range(moves.shape[1]):
            best[row, site] = boards[row, moves[least, site]]
            word = mix(word + GOLDEN + np.uint64(best[row, site]))
        prints[row] = word
