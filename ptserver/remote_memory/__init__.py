"""Variables of a program that live at a server: which they are, where they are kept, how they are reached."""
