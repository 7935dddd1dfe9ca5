"""What a person sees of a population: pictures, a page, a verdict."""
