"""The engine, on ports alone: runs sagas, takes them over, replays them, answers about their
past."""
