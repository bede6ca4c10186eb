"""What runs sagas, on ports alone: starts them, takes them over, replays them."""
