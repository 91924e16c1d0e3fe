"""Opens, runs, resumes and cancels operations: the planner decides, the engine acts."""
