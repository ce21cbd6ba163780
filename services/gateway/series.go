package gateway

func (g *Gateway) registerSeries() {}
