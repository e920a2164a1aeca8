"""Rules of mazes: which answers are right, how good the others are, and what is refused."""

from itertools import product

import pytest
import torch
from torch import Tensor

from attractorlab import tasks
from attractorlab.tasks import maze
from attractorlab.types import Instance

RING = "######S.G##.#.##...######"  # two ways from S to G: 2 steps along the top, 6 around
ROOM = "######S..##...##..G######"  # 6 shortest paths of 4 steps
WAY = "######S..####.##G..######"  # one way of 6 steps


def mazes(*texts: str) -> Instance:
    tokens = maze.from_text(texts)
    return Instance(inputs=tokens, targets=None, ids=tuple(texts), task=f"maze-{maze.side_for(tokens.shape[1])}", difficulty=None)


def strewn(rows: int, seed: int, *, side: int = 7, walls: float = 0.35) -> Instance:
    """Mazes with walls strewn at random, as those of HRM: many ways, or none."""
    g = torch.Generator().manual_seed(seed)
    boards = torch.where(torch.rand(rows, side * side, generator=g) < walls, 1, 2)
    ends = torch.rand(rows, side * side, generator=g).argsort(1)[:, :2]
    boards = boards.scatter(1, ends[:, :1], 3).scatter(1, ends[:, 1:], 4)
    return tasks.from_tokens(boards, task=f"maze-{side}")


def walks(tokens: Tensor) -> tuple[int, int]:
    """Steps of a shortest path and how many there are, from powers of the adjacency matrix."""
    side = maze.side_for(len(tokens))
    free = (tokens > 1).tolist()
    joined = torch.zeros(side * side, side * side, dtype=torch.float64)
    for one, two in product(range(side * side), repeat=2):
        if free[one] and free[two] and abs(one // side - two // side) + abs(one % side - two % side) == 1:
            joined[one, two] = 1.0
    start, goal = int((tokens == 3).int().argmax()), int((tokens == 4).int().argmax())
    row = torch.zeros(side * side, dtype=torch.float64)
    row[start] = 1.0
    for steps in range(1, side * side):
        row = row @ joined
        if row[goal] > 0:
            return steps, int(row[goal])
    return -1, 0


def test_the_solver_counts_as_powers_of_the_adjacency_matrix_do() -> None:
    puzzles = strewn(30, 0)
    solutions, counts, steps = tasks.solve_mazes(puzzles.inputs)
    expected = [walks(board) for board in puzzles.inputs]
    assert steps.tolist() == [steps for steps, _ in expected]
    assert counts.tolist() == [min(2, number) for _, number in expected]
    assert {0, 1, 2} == set(counts.tolist()), "each case occurs"
    assert torch.equal(tasks.verify(puzzles, solutions), counts > 0)


def test_known_mazes_have_their_known_paths() -> None:
    solutions, counts, steps = tasks.solve_mazes(mazes(RING, ROOM, WAY, "######S#.##.#.##..G######", "######S#.####.##..G######").inputs)
    assert counts.tolist() == [1, 2, 1, 1, 0] and steps.tolist() == [2, 4, 6, 4, -1]
    assert maze.to_text(solutions[2]) == "######Soo####o##Goo######"
    assert maze.to_text(solutions[1]) == "######Soo##..o##..G######", "of several, the first in the order up, left, right, down"
    assert maze.to_text(solutions[4]) == "######S#.####.##..G######", "without a way nothing is marked"


def test_of_all_markings_of_a_room_the_six_shortest_paths_are_right() -> None:
    room = mazes(ROOM)
    spaces = (room.inputs[0] == maze.SPACE).nonzero().flatten()
    marks = torch.tensor(list(product((maze.SPACE, maze.PATH), repeat=len(spaces))))
    answers = room.inputs.repeat(len(marks), 1).scatter(1, spaces.expand(len(marks), -1), marks)[:, None]
    right = tasks.verify(room, answers)[:, 0]
    assert int(right.sum()) == 6 and {walks(answers[row, 0].where(answers[row, 0] != 2, 1))[1] for row in right.nonzero().flatten()} == {1}
    scores = tasks.score_paths(room, answers)
    assert torch.equal(scores.optimal[:, 0], right)
    everything = scores.length[-1, 0], scores.spare[-1, 0], scores.valid[-1, 0]
    assert [int(one) for one in everything] == [4, 4, 0], "to mark every cell joins the ends, with four cells to spare, and is no path"
    for row in range(0, len(marks), 5):  # a second route to the lengths: walls wherever nothing is marked
        marked = answers[row, 0].where(answers[row, 0] != maze.SPACE, maze.WALL)
        assert int(scores.length[row, 0]) == walks(marked)[0]


def test_the_long_way_round_is_a_path_but_not_a_shortest_one() -> None:
    ring = mazes(RING)
    around, short = maze.from_text("######S.G##o#o##ooo######"), maze.from_text("######SoG##.#.##...######")
    scores = tasks.score_paths(ring, torch.stack([around, short]))
    assert scores.valid.flatten().tolist() == [True, True] and scores.optimal.flatten().tolist() == [False, True]
    assert scores.length.flatten().tolist() == [6, 2] and scores.shortest.tolist() == [2] and scores.spare.flatten().tolist() == [0, 0]
    assert tasks.verify(ring, around).tolist() == [False] and tasks.verify(ring, short).tolist() == [True]


WRONG = {
    "nothing is marked": WAY,
    "a gap": "######So.####o##Goo######",
    "a wall is taken away": "######Soo##.#o##Goo######",
    "a wall is marked": "######Soo##o#o##Goo######",
    "the start is marked over": "######ooo####o##Goo######",
    "start and goal change places": "######Goo####o##Soo######",
    "a cell is walled up": "######S#o####o##Goo######",
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
def test_answers_that_are_no_path_are_wrong(answer: str) -> None:
    puzzle, tokens = mazes(WAY), maze.from_text(answer)
    assert tasks.verify(puzzle, tokens).tolist() == tasks.score_paths(puzzle, tokens).valid.tolist() == [False]


def test_a_detached_loop_is_not_overlooked() -> None:
    """Two marked neighbours each, and as many cells as a shortest path has, but in a loop beside the ends."""
    text = "\n".join(["########", "#S.....#", "#......#", "#.....G#", "#......#", "#......#", "#......#", "########"])
    tokens = maze.from_text(text)
    puzzle = Instance(inputs=tokens, targets=None, ids=("a",), task="maze-8", difficulty=None)
    shortest = int(tasks.score_paths(puzzle, tokens).shortest[0])
    loop = tokens.clone()
    loop[0, [4 * 8 + 1, 4 * 8 + 2, 5 * 8 + 2, 5 * 8 + 1]] = maze.PATH
    assert shortest == 7 and not tasks.verify(puzzle, loop).any()
    scores = tasks.score_paths(puzzle, loop)
    assert (int(scores.length[0]), int(scores.spare[0]), bool(scores.kept[0])) == (-1, 4, True)


def test_ends_side_by_side_need_no_mark() -> None:
    puzzle = mazes("######SG.##...##...######")
    assert tasks.verify(puzzle, puzzle.inputs).tolist() == [True]
    assert tasks.score_paths(puzzle, puzzle.inputs).length.tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_verifying_and_scoring_agree_on_spoiled_answers_and_no_row_depends_on_another(seed: int) -> None:
    puzzles = strewn(40, seed, walls=0.3)
    solutions, _, _ = tasks.solve_mazes(puzzles.inputs)
    g = torch.Generator().manual_seed(seed)
    spoiled = torch.where(torch.rand(3, 40, 49, generator=g) < 0.02, torch.randint(0, 6, (3, 40, 49), generator=g), solutions)
    answers = torch.cat([solutions[None], spoiled])
    right, scores = tasks.verify(puzzles, answers), tasks.score_paths(puzzles, answers)
    assert torch.equal(right, scores.optimal) and right.any() and not right.all()
    order = torch.randperm(40, generator=g)
    for part in (order, order[:7]):
        assert torch.equal(tasks.verify(puzzles[part], answers[:, part]), right[:, part])
        again = tasks.score_paths(puzzles[part], answers[:, part].to(torch.uint8))
        for name in ("kept", "length", "spare"):
            assert torch.equal(getattr(again, name), getattr(scores, name)[:, part])
    turned = tasks.random_symmetries("maze-7", 40, generator=g)
    images = Instance(turned.apply(puzzles.inputs), None, puzzles.ids, puzzles.task, None)
    assert torch.equal(tasks.verify(images, turned.apply(answers)), right)
    assert torch.equal(tasks.score_paths(images, turned.apply(answers)).length, scores.length)


def test_a_maze_without_two_ends_or_a_way_has_no_right_answer() -> None:
    boards = maze.from_text(["######..G##...##...######", "######S.G##S..##...######", "######S#G####.##...######"])
    puzzles = Instance(boards, None, ("a", "b", "c"), "maze-5", None)
    assert not tasks.verify(puzzles, boards).any()
    scores = tasks.score_paths(puzzles, boards)
    assert scores.shortest.tolist() == scores.length.tolist() == [-1, -1, -1] and not scores.valid.any()


def test_a_path_given_away_in_part_is_kept() -> None:
    puzzle = mazes("######So.####.##G..######")
    assert tasks.verify(puzzle, maze.from_text("######Soo####o##Goo######")).tolist() == [True]
    assert tasks.score_paths(puzzle, maze.from_text("######S.o####o##Goo######")).kept.tolist() == [False]


def test_text_is_read_and_written_alike() -> None:
    puzzles = strewn(20, 5)
    solutions, _, _ = tasks.solve_mazes(puzzles.inputs)
    texts = [maze.to_text(board) for board in solutions]
    assert torch.equal(maze.from_text(texts), solutions)
    assert torch.equal(maze.from_text([text.replace(".", " ") for text in texts]), solutions)
    assert torch.equal(maze.from_text(["\n".join(maze.grid_lines(board)) for board in solutions]), solutions)
    assert torch.equal(tasks.task_of("maze-7").from_text(texts[0]), solutions[:1]) and tasks.task_of("maze-7").to_text(solutions[0]) == texts[0]
    assert maze.to_text(torch.tensor([0, 9, 1])) == "??#"


def test_text_that_is_no_maze_is_refused_with_its_row() -> None:
    with pytest.raises(tasks.DataError, match=r"`from_text` got a maze of 24 letters in row 0\. A maze is square.*Put each maze on one line"):
        maze.from_text(WAY[:-1])
    with pytest.raises(tasks.DataError, match=r"`from_text` got a maze of 24 letters in row 1\. A maze of side 5 has 25.*pass the `task`"):
        maze.from_text([WAY, WAY[:-1]])
    for letter in ("x", "é"):
        with pytest.raises(tasks.DataError, match=rf"`from_text` got the letter '{letter}' at site 3 in row 0\. Mazes are written with #"):
            maze.from_text(WAY[:3] + letter + WAY[4:])
    with pytest.raises(ValueError, match=r"`from_text` got no lines\. A maze is one line.*Pass a line for each maze"):
        maze.from_text([])


@pytest.mark.usefixtures("unchecked")
def test_tokens_that_are_no_maze_are_refused_with_their_row() -> None:
    good = mazes(WAY).inputs[0].tolist()
    assert tasks.from_tokens([good], task="maze-5").task == "maze-5"
    with pytest.raises(tasks.DataError, match=r"`from_tokens` got the id 0 in row 0, site 0\. In maze-5 a wall is 1.*Renumber"):
        tasks.from_tokens([[0, *good[1:]]], task="maze-5")
    for token in (1, 4):
        bad = [token if id_ == 3 else id_ for id_ in good]
        with pytest.raises(tasks.DataError, match=r"`from_tokens` got a maze without exactly one start and one goal in row 1\. .*once each"):
            tasks.from_tokens([good, bad], task="maze-5")
    with pytest.raises(tasks.DataError, match=r"`from_tokens` got a board of 25 ids in row 0\. In maze-7 a board has 49"):
        tasks.from_tokens([good], task="maze-7")
    for row, odd in ((1, good), ("S..", [maze.to_text(mazes(WAY).inputs[0])])):
        with pytest.raises(tasks.DataError, match=rf"`from_tokens` got '.*{row}.*' as row 0\. A row is a board, a list of 25 token ids\. .*read text with"):
            tasks.from_tokens(odd, task="maze-5")
    for none in ([[None] * 25], [[1.0] * 25], [[True] * 25], [[1j] * 25], torch.ones(1, 25, dtype=torch.bool)):
        with pytest.raises(tasks.DataError, match=r"`from_tokens` got ids of shape \(1, 25\) and type .* for maze-5\. Ids are integers of shape \[row 25\]"):
            tasks.from_tokens(none, task="maze-5")
    with pytest.raises(ValueError, match=r"`solve_mazes` got a maze without exactly one start and one goal in row 0\. A path has two ends"):
        tasks.solve_mazes(torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`solve_mazes` got ids from 1 to 7\. Ids of mazes run from 0 to 5\. Pass token ids"):
        tasks.solve_mazes(torch.tensor([good]).where(torch.tensor([good]) != 3, 7))
    with pytest.raises(ValueError, match=r"`side_for` got a maze of 26 sites\. Mazes are square, with a side from 5 to 255\. Pass whole mazes"):
        tasks.solve_mazes(torch.ones(1, 26, dtype=torch.long))


@pytest.mark.parametrize("name", ["verify", "score_paths"])
def test_answers_of_another_shape_are_refused(name: str) -> None:
    function = {"verify": tasks.verify, "score_paths": tasks.score_paths}[name]
    with pytest.raises(ValueError, match=rf"`{name}` got answers of shape \(2, 25\) for puzzles of shape \(1, 25\)\. .*`instance\[rows\]`"):
        function(mazes(WAY), maze.from_text([WAY, WAY]))


@pytest.mark.parametrize("name", ["maze-4", "maze-256", "maze-011", "maze-", "maze-9x", "sudoku-8", "Maze", "", "sudoku-maze-9"])
def test_names_that_are_no_task_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`task_of` got the task '{name}'\. The tasks are 'sudoku', .*'maze-N' with a side N from 5 to 255\. Pass one"):
        tasks.task_of(name)


def test_tasks_say_what_models_and_drawings_need() -> None:
    for name, facts in {"maze": ("maze-30", 900, 6, 2), "maze-11": ("maze-11", 121, 6, 2), "sudoku": ("sudoku-9", 81, 11, 1), "sudoku-4": ("sudoku-4", 16, 6, 1)}.items():
        task = tasks.task_of(name)
        assert (task.name, task.sites, task.vocabulary, task.kind.blank) == facts
        made = tasks.generate(name, 2, seed=0) if name != "maze" else None
        assert made is None or (made.task == task.name and made.inputs.shape == (2, task.sites) and int(made.targets.max()) < task.vocabulary)  # type: ignore[union-attr]
    assert [tasks.task_of(name).unseen for name in ("sudoku-4", "sudoku-6", "maze-7", "maze-8", "maze-9")] == [False, True, False, False, True]
