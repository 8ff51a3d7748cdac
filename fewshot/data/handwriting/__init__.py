"""A model of handwriting: invented alphabets, their characters, and people who draw them.

A stroke is a pen moving one pixel at a time, so it is written as a sequence of headings: a line keeps its
heading, an arc turns it evenly, a corner jumps. `alphabets` invents characters in that form, `drawers`
redraws them with unsteady hands and puts down the ink. That a character is a motor program, which people
carry out with variations, is the idea of Lake, Salakhutdinov and Tenenbaum, Human-level concept learning
through probabilistic program induction, Science 350, 2015. The model and its constants are our own: chosen
by eye, by measurement (extent, ink, pen, likeness within and between classes) and by training on glyphs,
against Omniglot's training and validation classes only.

Everything is integer arithmetic on the words of a counter-based hash, so the same pixels come out on every
machine, whatever its floating point or its NumPy. Units: positions in 1/256 pixel (PIXEL), angles in
1/65536 turn (TURN), ratios in 1/1024 (ONE). x grows to the right, y downwards.
"""
